"""What may be released (ci/releasable.py), and that a release publishes the wheel that was tested and no other."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

releasable: Any = importlib.import_module("ci.releasable")  # as loose as a script
ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that may be released as 1.2.3."""
    (tmp_path / "pyproject.toml").write_text('[build-system]\n\n[project]\nname = "x"\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2026-12-01)\n\n- It is faster.\n")
    (tmp_path / "changelog.d").mkdir()
    (tmp_path / "changelog.d" / "README.md").touch()
    return tmp_path


def test_a_tree_that_is_ready(tree: Path) -> None:
    assert releasable.troubles("v1.2.3", tree) == []


def test_another_tag_than_the_version(tree: Path) -> None:
    assert releasable.troubles("v1.2.4", tree) == [
        "the tag is v1.2.4, and pyproject.toml says version 1.2.3: tag it v1.2.3"
    ]


@pytest.mark.parametrize("heading", ["## 1.2.3 (unreleased)", "## 1.2.30 (2026-12-01)", "## 1x2.3 (2026-12-01)"])
def test_a_changelog_without_the_section(tree: Path, heading: str) -> None:
    (tree / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    (told,) = releasable.troubles("v1.2.3", tree)
    assert told == "CHANGELOG.md has no section 1.2.3 with a date: towncrier build --version 1.2.3"


def test_fragments_that_are_left(tree: Path) -> None:
    (tree / "changelog.d" / "12.added.md").touch()
    assert releasable.troubles("v1.2.3", tree) == ["changelog.d has fragments that no section tells: 12.added.md"]


def test_it_reads_this_project_as_it_is() -> None:
    assert "the tag is v0, and pyproject.toml says version 0." in releasable.troubles("v0")[0]


def test_each_action_is_pinned_to_a_commit_with_its_version() -> None:
    used = re.findall(r"uses: (.+)", WORKFLOW.read_text("utf-8"))
    assert len(used) >= 5
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)] == []


def test_only_the_last_job_may_publish_and_it_builds_nothing() -> None:
    yaml: Any = pytest.importorskip("yaml")
    workflow = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    jobs = workflow["jobs"]
    assert workflow["permissions"] == {}
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read"},
        "test": {"contents": "read"},
        "publish": {"id-token": "write"},
    }
    assert (jobs["test"]["needs"], jobs["publish"]["needs"]) == ("build", "test")
    assert [step["uses"].partition("@")[0] for step in jobs["publish"]["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    building = [name for name, job in jobs.items() if "-m build" in str(job)]
    assert building == ["build"]
