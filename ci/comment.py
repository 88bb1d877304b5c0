"""Keeps one comment on a pull request up to date. Where it cannot, a notice says why, and the job is none the worse.

Run by the action with the file of the comment's text, whose first line is hidden and says whose comment it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SECONDS = 60
# Of what strangers wrote no more than is looked at.
FIRST_LINES = r'.[] | select(.user.type == "Bot") | {id, first: ((.body // "") | split("\n")[0])}'


class NotTold(Exception):
    """Why there is no comment."""


class Refused(NotTold):
    """The token may not do this one thing."""


def main(body: Path) -> None:
    try:
        keep(body)
    except NotTold as why:
        notice(str(why))
    except Exception as error:  # noqa: BLE001 – the job is as good as its tests, whatever was not foreseen here
        notice(f"{type(error).__name__}: {error}")


def notice(why: str) -> None:
    print(f"::notice title=memleak::No comment was written: {' '.join(why.split())}".replace("%", "%25"))


def keep(body: Path) -> None:
    number = pull_request()
    if number is None:
        return
    issues = f"repos/{os.environ['GITHUB_REPOSITORY']}/issues"
    marker = first_line(body.read_text(encoding="utf-8"))
    if not marker:
        raise NotTold("there is no text for it; the step before says why.")
    text = ("--field", f"body=@{body}")
    for earlier in with_marker(marker, f"{issues}/{number}/comments"):
        try:
            gh("--method", "PATCH", f"{issues}/comments/{earlier}", *text)
        except Refused:
            continue  # it is another app's
        return
    gh("--method", "POST", f"{issues}/{number}/comments", *text)


def pull_request() -> int | None:
    """Its number, by the event that began the run; none of a push, say."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text(encoding="utf-8"))
    return int(event["pull_request"]["number"]) if "pull_request" in event else None


def with_marker(marker: str, comments: str) -> list[int]:
    """Anybody can write our first line into a comment of their own, and that would be theirs: only apps' count."""
    listed = gh("--paginate", f"{comments}?per_page=100", "--jq", FIRST_LINES)
    # Not splitlines(): JSON may have other ends of lines than this one within its strings.
    apps = [json.loads(line) for line in listed.split("\n") if line]
    return [int(one["id"]) for one in apps if str(one["first"] or "").strip() == marker]


def first_line(text: str) -> str:
    return text.partition("\n")[0].strip()


def gh(*arguments: str) -> str:
    if not os.environ.get("GH_TOKEN"):
        raise NotTold("there is no token.")
    try:
        done = subprocess.run(
            ["gh", "api", *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
    except FileNotFoundError:
        raise NotTold("this runner has no gh, GitHub's command line.") from None
    except subprocess.TimeoutExpired:
        raise NotTold(f"GitHub has not answered for {SECONDS} s.") from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout
        if "Resource not accessible" in said:
            said += ". The token needs pull-requests: write, which runs for pull requests from forks do not have."
        raise (Refused if "HTTP 403" in said or "HTTP 404" in said else NotTold)(said)
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))
