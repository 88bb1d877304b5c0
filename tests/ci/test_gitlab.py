"""The templates for GitLab: their scripts, with a host that is not there."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import TestRecord
from pytest_memleak.report.json_file import document
from tests.ci.programs import ROOT, Programs, shown_of_the_sample
from tests.report.test_markdown import OVER, PEAK, RUN

parts: Any = importlib.import_module("ci.parts")  # as loose as a script
TEMPLATE = ROOT / "ci" / "gitlab" / "memory.yml"
RELEASES = ROOT / "ci" / "gitlab" / "releases.yml"
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
MARKER = "<!-- pytest-memleak: memory -->"


class Job:
    """One job of a merge request's pipeline."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self._machine = folder / "machine"
        self.programs = Programs(self._machine)
        self.programs.stand_in("curl", "fake_curl.py")
        self.variables = {"CI_MERGE_REQUEST_IID": "7", "MEMLEAK_NOTE_TOKEN": "the-token"}
        self.host(notes=[])
        self.results(broken=True)

    def results(self, *, broken: bool) -> None:
        """What pytest would come to."""
        found = Collected()
        found.add(TestRecord("t.py::t", "t.py", 1, results=(OVER if broken else PEAK,)))
        self.programs.pytest_comes_to(document(found, RUN), int(broken))

    @property
    def hub(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._machine / "curl.json").read_text())
        return found

    def host(self, **state: Any) -> None:
        (self._machine / "curl.json").write_text(json.dumps(state))

    def run(self, **inputs: str) -> tuple[int, str]:
        """Its status, and what it said."""
        job = template(inputs)
        environment = self.programs.environment() | {
            "CI_API_V4_URL": "https://host.invalid/api/v4",
            "CI_JOB_URL": "https://host.invalid/jobs/1",
            "CI_PROJECT_DIR": str(self.folder),
            "CI_PROJECT_ID": "3",
            **self.variables,
        }
        environment |= expanded(job["variables"], environment)
        done = []
        for part in ("script", "after_script"):
            (script,) = job[part]
            done.append(
                subprocess.run(
                    ["bash", "-c", script],
                    cwd=self.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        return done[0].returncode, "".join(one.stdout for one in done)


def expanded(variables: dict[str, Any], known: dict[str, str]) -> dict[str, str]:
    """As GitLab does it, before any script runs."""
    whole = {name: one if isinstance(one, dict) else {"value": one} for name, one in variables.items()}

    def value(one: dict[str, Any]) -> str:
        text: str = one["value"]
        return _VARIABLE.sub(lambda found: known.get(found[1], ""), text) if one.get("expand", True) else text

    return {name: value(one) for name, one in whole.items()}


def template(inputs: dict[str, Any], path: Path = TEMPLATE) -> dict[str, Any]:
    _, jobs = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    for part in ("script", "after_script"):
        scripts = jobs["$[[ inputs.job ]]"].get(part, ())
        assert not any("$[[" in script for script in scripts), "what is pasted in is run"
    job: dict[str, Any]
    (job,) = parts.gitlab(path, **inputs).values()
    return job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_the_note_is_written_once_and_kept_up_to_date(job: Job) -> None:
    stranger = {"id": 5, "author": {"id": 2}, "body": f"{MARKER}\nnot ours"}
    job.host(notes=[stranger, stranger | {"id": 6}, stranger | {"id": 7}])
    status, said = job.run(
        args='-k \'a b\' $(touch bad)\n"a \\"q\\" b"', install="torch 'a b'\n-e .", package="memleak[html]"
    )
    assert status == 1, said
    assert job.programs.installed == ["torch a b", "-e .", "memleak[html]"]
    told = (job.folder / "told").read_text().splitlines()
    assert told[-5:] == ["-k", "a b", "$(touch", "bad)", 'a "q" b']
    assert not (job.folder / "bad").exists()
    assert "--gpu-backend=simulated" in told
    *others, note = job.hub["notes"]
    assert others == [stranger, stranger | {"id": 6}, stranger | {"id": 7}]
    assert note["body"].startswith(f"{MARKER}\n### Memory: 1 failed\n")
    assert "https://host.invalid/jobs/1/artifacts/file/memleak-results/memleak.html" in note["body"]
    assert job.hub["header"] == "PRIVATE-TOKEN: the-token"

    job.results(broken=False)
    status, said = job.run()
    assert status == 0, said
    assert len(job.hub["notes"]) == 4
    assert job.hub["notes"][-1]["body"].startswith(f"{MARKER}\n### Memory: 1 passed\n")
    left = {file.name for file in (job.folder / "memleak-results").iterdir()}
    assert left == {"memleak.json", "note.md"}, "answers of the host are no artifacts"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one")
def test_the_sample_s_broken_promises_are_in_the_note(job: Job) -> None:
    """Its own tests run, as in the action."""
    pytest.importorskip("plotly")
    shutil.copytree(ROOT / "fixtures" / "downstream", job.folder, dirs_exist_ok=True)
    job.programs.real_pytest()
    status, said = job.run(baseline="memleak-baseline.txt", args="-p no:cacheprovider")
    assert status == 1, said
    (note,) = job.hub["notes"]
    assert note["body"].startswith(f"{MARKER}\n{shown_of_the_sample()}")
    left = {file.name for file in (job.folder / "memleak-results").iterdir()}
    assert left == {"memleak.html", "memleak.json", "junit.xml", "note.md"}


def test_no_variable_is_put_into_an_input(job: Job) -> None:
    status, said = job.run(args="-k 'costs$5' ${CI_PROJECT_ID} $HOME", install="a$CI_PROJECT_ID", job="m$CI_PROJECT_ID")
    assert status == 1, said
    assert (job.folder / "told").read_text().splitlines()[-4:] == ["-k", "costs$5", "${CI_PROJECT_ID}", "$HOME"]
    assert job.programs.installed[0] == "a$CI_PROJECT_ID"
    assert job.hub["notes"][0]["body"].startswith("<!-- pytest-memleak: m CI_PROJECT_ID -->")


def test_quotes_that_do_not_end_are_an_error_and_no_run_without_arguments(job: Job) -> None:
    job.results(broken=False)
    status, said = job.run(args="-k 'a b")
    assert status == 1
    assert "No closing quotation: -k 'a b" in said
    assert not (job.folder / "told").exists()


def test_it_is_a_job_of_merge_requests_and_of_the_default_branch() -> None:
    """A job without rules is in pipelines of branches and tags alone, which know no merge request."""
    mine = [{"if": "$CI_COMMIT_TAG", "when": "manual"}]
    assert template({})["rules"] == [
        {"if": '$CI_PIPELINE_SOURCE == "merge_request_event"'},
        {"if": "$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH"},
    ]
    assert template({"rules": mine})["rules"] == mine


@pytest.mark.parametrize("path", [TEMPLATE, RELEASES], ids=lambda path: path.stem)
def test_the_page_names_every_input(path: Path) -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    head, _ = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    assert set(head["spec"]["inputs"]) <= set(re.findall(r"`([\w-]+)`", page))


def test_the_page_has_the_job_s_rules() -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "gitlab/memory.yml" in block)
    assert yaml.safe_load(shown)["workflow"]["rules"] == template({})["rules"]


@pytest.mark.parametrize(
    ("variable", "why"),
    [
        ("CI_MERGE_REQUEST_IID", "no pipeline of a merge request"),
        ("MEMLEAK_NOTE_TOKEN", "no variable MEMLEAK_NOTE_TOKEN"),
    ],
)
def test_what_keeps_a_note_away_is_said(job: Job, variable: str, why: str) -> None:
    del job.variables[variable]
    job.results(broken=False)
    status, said = job.run()
    assert status == 0
    assert why in said
    assert job.hub == {"notes": []}


def test_a_host_that_refuses_is_quoted(job: Job) -> None:
    job.host(notes=[], refuses='{"message": "403 Forbidden"}')
    job.results(broken=False)
    status, said = job.run()
    assert status == 0
    assert 'no note was written: {"message": "403 Forbidden"}' in said


def test_without_results_the_job_is_red_and_the_note_says_so(job: Job) -> None:
    job.programs.instead_of_pytest("")
    status, _ = job.run()
    assert status == 1
    (note,) = job.hub["notes"]
    assert "no results" in note["body"]


def test_a_name_that_cannot_be_a_note_s_is_told_and_no_fault_of_the_tests(job: Job) -> None:
    job.results(broken=False)
    status, said = job.run(job="--")
    assert status == 0
    assert "give a name with a letter or a number in it" in said
    assert "no note was written: there is nothing to say" in said


def test_artifacts_are_where_the_script_puts_them() -> None:
    job = template({})
    assert job["artifacts"]["paths"] == ["memleak-results/"]
    assert job["artifacts"]["when"] == "always"
    assert '--junitxml="$results/junit.xml"' in job["script"][0]
    assert job["artifacts"]["reports"]["junit"] == "memleak-results/junit.xml"


def test_releases_are_tried_as_they_were_written_when_it_is_time(tmp_path: Path) -> None:
    programs = Programs(tmp_path / "machine")
    programs.instead_of_memleak(
        "import pathlib, sys; pathlib.Path('told').write_text('\\n'.join(sys.argv[1:])); sys.exit(3)"
    )
    job = template(
        {
            "vary": "transformers>=5.3,<5.7\n\naccelerate==1,2\n",
            "tests": "t.py -k 'c \"d\"' $(touch bad) $CI",
            "options": "--minors --with 'a b'",
            "install": "torch 'a b'\n-e .",
            "package": "memleak[matrix]",
        },
        RELEASES,
    )
    assert job["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    environment = programs.environment() | {"CI_PROJECT_DIR": str(tmp_path)}
    (script,) = job["script"]
    environment |= expanded(job["variables"], environment)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 3, "memleak's own"
    assert programs.installed == ["torch a b", "-e .", "memleak[matrix]"]
    command, *told = (tmp_path / "told").read_text().splitlines()
    assert command == "matrix"
    assert told[:4] == [
        "--json",
        f"{tmp_path}/memleak-releases/releases.json",
        "--markdown",
        f"{tmp_path}/memleak-releases/releases.md",
    ]
    at = told.index("--")
    assert told[4:at] == [
        *("--vary", "transformers>=5.3,<5.7", "--vary", "accelerate==1,2"),
        *("--minors", "--with", "a b"),
    ]
    assert told[at + 1 :] == ["t.py", "-k", 'c "d"', "$(touch", "bad)", "$CI"]
    assert not (tmp_path / "bad").exists()
