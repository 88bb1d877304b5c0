"""What other repositories call: pinned, with no more rights than needed, and with the inputs that the docs name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ci.programs import ROOT, Programs
from tests.docs.test_examples import blocks_of

ACTION = ROOT / "ci" / "action.yml"
CALLED = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SAMPLE = ROOT / "fixtures" / "downstream" / ".github" / "workflows" / "memory.yml"
PAGE = ROOT / "docs" / "ci.md"
_PINNED = re.compile(r"uses: (?P<action>[\w./-]+)@(?P<commit>[0-9a-f]{40}) # (?P<release>v\d+\.\d+\.\d+)")


def loaded(path: Path) -> dict[Any, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


def steps_of(path: Path) -> list[dict[str, Any]]:
    data = loaded(path)
    return [
        *data.get("runs", {}).get("steps", ()),
        *(step for job in data.get("jobs", {}).values() for step in job["steps"]),
    ]


def test_actions_of_others_are_pinned_by_commit_and_everywhere_the_same() -> None:
    pins: set[tuple[str, str, str]] = set()
    for path in (ACTION, *CALLED, SAMPLE):
        text = path.read_text(encoding="utf-8")
        found = [(one["action"], one["commit"], one["release"]) for one in _PINNED.finditer(text)]
        ours = [step for step in steps_of(path) if "pytest-memleak/ci" in step.get("uses", "")]
        assert len(found) + len(ours) == sum("uses" in step for step in steps_of(path))
        pins.update(found)
    assert len({action for action, _, _ in pins}) == len(pins)


@pytest.mark.parametrize("path", [ACTION, *CALLED, SAMPLE], ids=lambda path: path.parent.name + "/" + path.stem)
def test_no_expression_stands_in_a_script(path: Path) -> None:
    steps = steps_of(path)
    assert steps
    assert not [step for step in steps if "${{" in step.get("run", "")]


@pytest.mark.parametrize("path", [*CALLED, SAMPLE], ids=lambda path: path.stem)
def test_only_what_comments_or_publishes_may_write(path: Path) -> None:
    data = loaded(path)
    assert data["permissions"] == {}
    for job in data["jobs"].values():
        used = " ".join(step.get("uses", "") for step in job["steps"])
        if "pypi-publish" in used:  # trusted publishing: it says who it is, and reads nothing
            assert job["permissions"] == {"id-token": "write"}
            continue
        comments = {"pull-requests": "write"} if "pytest-memleak/ci" in used else {}
        assert job["permissions"] == {"contents": "read"} | comments
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("name", ["memory", "memory-gpu"])
def test_a_workflow_passes_all_its_inputs_on(name: str) -> None:
    data = loaded(ROOT / ".github" / "workflows" / f"{name}.yml")
    inputs = data[True]["workflow_call"]["inputs"]  # to YAML the key "on" is true
    (job,) = data["jobs"].values()
    given = job["steps"][-1]["with"]
    passed = {one for one, value in given.items() if value == f"${{{{ inputs.{one} }}}}"}
    assert passed == set(inputs) - {"runner"}
    assert set(given) <= set(loaded(ACTION)["inputs"])
    assert given["gpu-backend"] == ("real" if name == "memory-gpu" else "${{ inputs.gpu-backend }}")


def holds(condition: str, github: dict[str, Any]) -> bool:
    """An expression of GitHub's, as far as ours need one: whatever an event lacks is null."""

    def value(text: str) -> Any:
        if text.startswith("'"):
            return text.strip("'")
        found: Any = {"github": github, "null": None}
        for name in text.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found

    def part(text: str) -> bool:
        left, sign, right = text.split()
        assert sign in ("==", "!=")
        return bool((value(left) == value(right)) == (sign == "=="))

    return any(part(text) for text in condition.split(" || "))


@pytest.mark.parametrize(
    ("event", "head", "runs"),
    [
        ("push", "no pull request", True),
        ("schedule", "no pull request", True),
        *(
            (event, head, head == "ours/it")
            for event in ("pull_request", "pull_request_target", "pull_request_review", "pull_request_review_comment")
            for head in ("ours/it", "stranger/it", None)
        ),
    ],
)
def test_a_stranger_s_program_never_gets_to_a_card_of_one_s_own(event: str, head: str | None, runs: bool) -> None:
    (job,) = loaded(ROOT / ".github" / "workflows" / "memory-gpu.yml")["jobs"].values()
    repository = {"full_name": head} if head else None
    carried = {} if head == "no pull request" else {"pull_request": {"head": {"repo": repository}}}
    github = {"event_name": event, "event": carried, "repository": "ours/it"}
    assert holds(job["if"], github) is runs


def test_the_page_shows_the_sample_s_workflow_and_names_every_input() -> None:
    (shown,) = (block.text for block in blocks_of(PAGE) if block.note == "the workflow of fixtures/downstream")
    assert shown == SAMPLE.read_text(encoding="utf-8")
    table = PAGE.read_text(encoding="utf-8").split("| input | |")[1].split("\n\n")[0]
    first_cells = " ".join(row.split("|")[1] for row in table.splitlines()[2:])
    assert set(re.findall(r"`([\w-]+)`", first_cells)) == set(loaded(ACTION)["inputs"])
    assert set(loaded(SAMPLE)["jobs"]["memory"]["steps"][-1]["with"]) <= set(loaded(ACTION)["inputs"])


def test_releases_are_tried_as_they_were_written(tmp_path: Path) -> None:
    (script,) = (
        step["run"] for step in steps_of(ROOT / ".github" / "workflows" / "releases.yml") if "VARY" in str(step)
    )
    programs = Programs(tmp_path)
    programs.stand_in("memleak", "fake_memleak.py")
    summary = tmp_path / "summary"
    (tmp_path / ".pytest-memleak").symlink_to(ROOT)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=programs.environment()
        | {
            "GITHUB_STEP_SUMMARY": str(summary),
            "GITHUB_WORKSPACE": str(tmp_path),
            "OPTIONS": '--minors --with "a \\"b"',
            "RUNNER_TEMP": str(tmp_path),
            "TESTS": 't.py -k "c \\"d\\"" $(touch bad)',
            "VARY": "transformers>=5.3,<5.7\n\naccelerate==1,2\n",
        },
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 3, "memleak's own"
    told = (tmp_path / "memleak.json").read_text().splitlines()
    at = told.index("--json")
    assert told[:at] == [
        "matrix",
        *("--vary", "transformers>=5.3,<5.7", "--vary", "accelerate==1,2"),
        "--minors",
        "--with",
        'a "b',
    ]
    assert told[told.index("--") + 1 :] == ["t.py", "-k", 'c "d"', "$(touch", "bad)"]
    assert summary.read_text() == "the table\n"
    assert not (tmp_path / "bad").exists()


def test_this_repository_is_checked_with_each_change_and_its_cases_once_a_week() -> None:
    data = loaded(ROOT / ".github" / "workflows" / "ci.yml")
    assert {"pull_request", "push", "schedule"} <= set(data[True])
    scripts = {name: " ".join(step.get("run", "") for step in job["steps"]) for name, job in data["jobs"].items()}
    assert "bash .ci/run" in scripts["check"]
    assert "actionlint@v" in scripts["check"]
    assert "memleak matrix" in scripts["releases"]
    assert "'schedule'" in data["jobs"]["releases"]["if"]
