"""``gh api`` for tests: comments in a file, calls recorded, and a host that can be told to refuse."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

FILTER = r'.[] | select(.user.type == "Bot") | {id, first: ((.body // "") | split("\n")[0])}'


def main(state: Path, command: str, *arguments: str) -> int:
    hub = json.loads(state.read_text()) if state.exists() else {}
    comments = hub.setdefault("comments", [])
    hub.setdefault("calls", []).append(list(arguments))
    hub["token"] = os.environ.get("GH_TOKEN", "")
    try:
        assert command == "api"
        if hub.get("refuses"):
            print(f"gh: {hub['refuses']}", file=sys.stderr)
            return 1
        if "--paginate" in arguments:
            assert arguments == ("--paginate", "repos/some/where/issues/7/comments?per_page=100", "--jq", FILTER)
            for comment in comments:
                if comment["user"]["type"] == "Bot":
                    # gh prints these signs as they are.
                    first = {"id": comment["id"], "first": comment["body"].split("\n")[0]}
                    sys.stdout.buffer.write(f"{json.dumps(first, ensure_ascii=False)}\n".encode())
            sys.stdout.buffer.write(hub.get("also", "").encode())
            return 0
        _, method, path, _, body = arguments
        assert body.startswith("body=@")
        text = Path(body.removeprefix("body=@")).read_text(encoding="utf-8")
        if method == "POST":
            assert path == "repos/some/where/issues/7/comments"
            comments.append({"id": 100 + len(comments), "user": {"type": "Bot"}, "body": text})
        else:
            assert method == "PATCH"
            start, _, number = path.rpartition("/")
            assert start == "repos/some/where/issues/comments"
            (comment,) = (one for one in comments if str(one["id"]) == number)
            if refuses := comment.get("refuses"):
                print(f"gh: {refuses}", file=sys.stderr)
                return 1
            comment["body"] = text
    finally:
        state.write_text(json.dumps(hub))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
