"""A runner for the steps of a composite action, as far as ours needs one: what GitHub would give it, and keep.

``python -m pip install``, ``gh`` and the actions of others are recorded and not run. All else is.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.ci.programs import ROOT, Programs

_CONDITION = re.compile(r"(?P<name>[\w.-]+) (?P<sign>==|!=) '(?P<text>[^']*)'")


@dataclass(frozen=True)
class Ran:
    status: int
    output: str
    summary: str
    outputs: Mapping[str, Mapping[str, str]]
    uploaded: tuple[Mapping[str, str], ...]

    @property
    def annotations(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith("::")]


@dataclass
class Composite:
    """An action, and a machine for one job after another on a repository's checkout."""

    repository: Path
    machine: Path
    event: Mapping[str, Any] = field(default_factory=lambda: {"pull_request": {"number": 7}})
    token: str = "the-token"

    def __post_init__(self) -> None:
        self.action = yaml.safe_load((ROOT / "ci" / "action.yml").read_text(encoding="utf-8"))
        (self.machine / "temp").mkdir(parents=True)
        self.programs = Programs(self.machine)
        self.programs.stand_in("gh", "fake_gh.py")

    @property
    def hub(self) -> dict[str, Any]:
        """What the pull request's host has: its comments, and the calls that it got."""
        found: dict[str, Any] = json.loads((self.machine / "gh.json").read_text())
        return found

    def host(self, **state: Any) -> None:
        (self.machine / "gh.json").write_text(json.dumps(state))

    def run(self, **inputs: str) -> Ran:
        """`inputs`: those of the action, with _ for -."""
        known: dict[str, str] = {
            "github.workflow": "CI",
            "github.job": "memory",
            "github.token": self.token,
        }
        for name, declared in self.action["inputs"].items():
            known[f"inputs.{name}"] = _filled(declared.get("default", ""), known)
        for name, value in inputs.items():
            assert f"inputs.{name.replace('_', '-')}" in known, "the action has no such input"
            known[f"inputs.{name.replace('_', '-')}"] = value
        files = {name: self.machine / name for name in ("output", "summary", "event")}
        files["summary"].write_text("")
        files["event"].write_text(json.dumps(self.event))
        said, status, uploaded = "", 0, []
        for step in self.action["runs"]["steps"]:
            if not _holds(step.get("if", "success()"), known, failed=status != 0):
                continue
            if "uses" in step:
                uploaded.append({name: _filled(value, known) for name, value in step["with"].items()})
                outputs = {"artifact-url": "https://host.invalid/artifacts/1"}
            else:
                files["output"].write_text("")
                done = self._step(step, known, files)
                said += done.stdout
                status = status or done.returncode
                outputs = dict(line.split("=", 1) for line in files["output"].read_text().splitlines())
            known |= {f"steps.{step.get('id')}.outputs.{name}": value for name, value in outputs.items()}
        steps: dict[str, dict[str, str]] = {}
        for name, value in known.items():
            if name.startswith("steps."):
                steps.setdefault(name.split(".")[1], {})[name.split(".")[3]] = value
        return Ran(status, said, files["summary"].read_text(encoding="utf-8"), steps, tuple(uploaded))

    def _step(
        self, step: Mapping[str, Any], known: Mapping[str, str], files: Mapping[str, Path]
    ) -> subprocess.CompletedProcess[str]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an expression in a script is run by it"
        environment = self.programs.environment() | {
            "GITHUB_ACTION_PATH": str(ROOT / "ci"),
            "GITHUB_EVENT_NAME": "pull_request" if "pull_request" in self.event else "push",
            "GITHUB_EVENT_PATH": str(files["event"]),
            "GITHUB_OUTPUT": str(files["output"]),
            "GITHUB_REPOSITORY": "some/where",
            "GITHUB_STEP_SUMMARY": str(files["summary"]),
            "GITHUB_WORKSPACE": str(self.repository),
            "RUNNER_TEMP": str(self.machine / "temp"),
        }
        environment |= {name: _filled(value, known) for name, value in step.get("env", {}).items()}
        script = self.machine / "script.sh"
        script.write_text(step["run"])
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.repository / _filled(step.get("working-directory", "."), known),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )


def _filled(text: str, known: Mapping[str, str]) -> str:
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: known.get(found[1], ""), text)


def _holds(condition: str, known: Mapping[str, str], *, failed: bool) -> bool:
    parts = condition.removeprefix("${{ ").removesuffix(" }}").split(" && ")
    # Without a word about how earlier steps ended, a step runs only if none failed.
    return (not failed or "!cancelled()" in parts) and all(_part(part, known) for part in parts)


def _part(part: str, known: Mapping[str, str]) -> bool:
    if part in ("success()", "!cancelled()"):
        return True
    found = _CONDITION.fullmatch(part)
    assert found, f"this runner cannot read the condition {part!r}"
    return (known.get(found["name"], "") == found["text"]) == (found["sign"] == "==")
