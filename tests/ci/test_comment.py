"""The program that keeps the action's comment: whatever it meets, the job is as good as its tests."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ci.fake_gh import FILTER
from tests.ci.programs import ROOT, Programs

comment: Any = importlib.import_module("ci.comment")  # as loose as a script
MARKER = "<!-- pytest-memleak: CI / memory -->"
NOTICE = "::notice title=memleak::No comment was written: "


class Step:
    """The action's last but one, of a run for the pull request 7."""

    def __init__(self, folder: Path) -> None:
        self._machine = folder
        self._programs = Programs(folder)
        self._programs.stand_in("gh", "fake_gh.py")
        self.event: Any = {"pull_request": {"number": 7}}
        (folder / "comment.md").write_text(f"{MARKER}\nnew", encoding="utf-8")

    @property
    def hub(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._machine / "gh.json").read_text(encoding="utf-8"))
        return found

    @property
    def comments(self) -> dict[int, str]:
        return {one["id"]: one["body"] for one in self.hub["comments"]}

    def run(self, *, token: str = "t", **host: Any) -> str:
        """What it said; `host` is what the pull request's host has."""
        (self._machine / "gh.json").write_text(json.dumps(host), encoding="utf-8")
        (self._machine / "event").write_text(json.dumps(self.event), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, ROOT / "ci" / "comment.py", self._machine / "comment.md"],
            env=self._programs.environment()
            | {
                "GH_TOKEN": token,
                "GITHUB_EVENT_PATH": str(self._machine / "event"),
                "GITHUB_REPOSITORY": "some/where",
                "PYTHONUTF8": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def step(tmp_path: Path) -> Step:
    return Step(tmp_path)


def of_an_app(number: int, body: str) -> dict[str, Any]:
    return {"id": number, "user": {"type": "Bot"}, "body": body}


@pytest.mark.parametrize("end", ["\x0b", "\x1c", "\x85", "\u2028", "\u2029"])
def test_ends_of_lines_that_only_python_knows_are_text_of_a_comment(step: Step, end: str) -> None:
    stranger = of_an_app(5, f"one{end}two")
    assert step.run(comments=[stranger, of_an_app(6, f"{MARKER}\r\nold")]) == ""
    assert step.comments == {5: stranger["body"], 6: f"{MARKER}\nnew"}


@pytest.mark.parametrize("answer", ["no JSON\n", "[1]\n", "{}\n", '{"id": null, "first": null}\n', "null\n"])
def test_an_answer_that_nobody_foresaw_is_a_notice_at_most(step: Step, answer: str) -> None:
    said = step.run(comments=[], also=answer)
    assert said == "" or said.startswith(NOTICE)


@pytest.mark.parametrize("event", [{"pull_request": 7}, {"pull_request": None}, {"pull_request": {}}])
def test_so_is_an_event_that_nobody_foresaw(step: Step, event: Any) -> None:
    step.event = event
    said = step.run(comments=[])
    assert said.startswith(NOTICE)
    assert step.hub == {"comments": []}


def test_a_push_is_no_news(step: Step) -> None:
    step.event = {"ref": "refs/heads/main"}
    assert step.run(comments=[]) == ""
    assert step.hub == {"comments": []}


@pytest.mark.parametrize("refusal", ["Resource not accessible by integration (HTTP 403)", "Not Found (HTTP 404)"])
def test_beside_another_app_s_comment_stands_one_of_our_own(step: Step, refusal: str) -> None:
    theirs = of_an_app(5, f"{MARKER}\ntheirs") | {"refuses": refusal}
    assert step.run(comments=[theirs]) == ""
    ((first, before), (number, body)) = step.comments.items()
    assert (first, before, body) == (5, theirs["body"], f"{MARKER}\nnew")
    assert step.run(comments=[theirs, of_an_app(number, f"{MARKER}\nold")]) == ""
    assert step.comments == {5: theirs["body"], number: body}


def test_an_ailing_host_is_quoted_and_gets_no_second_comment(step: Step) -> None:
    ours = of_an_app(5, f"{MARKER}\nold") | {"refuses": "Bad Gateway (HTTP 502)"}
    assert step.run(comments=[ours]) == f"{NOTICE}gh: Bad Gateway (HTTP 502)\n"
    assert step.hub["comments"] == [ours]


def test_permissions_are_named_where_they_are_what_lacks(step: Step) -> None:
    assert step.run(refuses="API rate limit exceeded (HTTP 403)") == f"{NOTICE}gh: API rate limit exceeded (HTTP 403)\n"
    assert "needs pull-requests: write" in step.run(refuses="Resource not accessible by integration (HTTP 403)")


@pytest.mark.skipif(shutil.which("jq") is None, reason="gh has its own jq, and this machine has none")
def test_the_filter_gives_the_first_lines_of_apps() -> None:
    listed = [
        of_an_app(1, f"{MARKER}\r\ntext"),
        {"id": 2, "user": {"type": "User"}, "body": MARKER},
        {"id": 3, "user": None, "body": MARKER},
        of_an_app(4, "") | {"body": None},
        of_an_app(5, "a\u2028b"),
    ]
    assert comment.FIRST_LINES == FILTER
    done = subprocess.run(
        ["jq", "-c", FILTER], input=json.dumps(listed), capture_output=True, encoding="utf-8", check=True
    )
    found = [json.loads(line) for line in done.stdout.split("\n") if line]
    assert found == [{"id": 1, "first": f"{MARKER}\r"}, {"id": 4, "first": None}, {"id": 5, "first": "a\u2028b"}]
