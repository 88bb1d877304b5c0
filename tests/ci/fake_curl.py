"""``curl`` for tests, as GitLab would answer it: notes in a file, two on a page, calls recorded."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAGE = 2


def main(state: Path, *arguments: str) -> int:
    hub = json.loads(state.read_text())
    given = list(arguments)
    for flag in ("--silent", "--show-error", "--fail-with-body"):
        given.remove(flag)
    address = urlsplit(given.pop())
    options = dict(zip(given[::2], given[1::2], strict=True))
    assert (options["--header"], options["--max-time"]) == ("@-", "60")
    hub["header"] = sys.stdin.read().strip()
    hub.setdefault("calls", []).append([options.get("--request", "GET"), address.path])
    notes = "/api/v4/projects/3/merge_requests/7/notes"
    try:
        if hub.get("refuses"):
            print(hub["refuses"])
            return 22
        if address.path == "/api/v4/user":
            print(json.dumps({"id": 1}))
        elif "--request" not in options:
            assert address.path == notes
            page = int(parse_qs(address.query)["page"][0])
            print(json.dumps(hub["notes"][PAGE * (page - 1) : PAGE * page]))
        else:
            body = options["--data-urlencode"]
            assert body.startswith("body@")
            text = Path(body.removeprefix("body@")).read_text(encoding="utf-8")
            if options["--request"] == "POST":
                assert address.path == notes
                hub["notes"].append({"id": 100 + len(hub["notes"]), "author": {"id": 1}, "body": text})
            else:
                (note,) = (one for one in hub["notes"] if address.path == f"{notes}/{one['id']}")
                note["body"] = text
            print("{}")
    finally:
        state.write_text(json.dumps(hub))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
