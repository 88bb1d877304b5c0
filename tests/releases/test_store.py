"""What is found again of what was run, and what is not."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.releases import deciding
from pytest_memleak.releases.cell import Cell, Environment, Outcome, Run
from pytest_memleak.releases.store import Store

RUN = Run(Environment((("lib", "1.0"),), ("dep",)), ("t.py",), ("t.py",))
DONE = Outcome(RUN, (Cell((("lib", "1.0"),), "t.py::t", "pass"),), complete=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path / "tests")
    Path("t.py").write_text("def test_t(): pass")
    deciding._digests.clear()  # kept for the length of one call
    yield Store(tmp_path / "kept")
    deciding._digests.clear()


def test_a_run_that_is_complete_is_found_again(store: Store) -> None:
    assert store.get(RUN) is None
    store.put(DONE)
    again = store.get(RUN)
    assert again is not None
    assert [(cell.verdict, bool(cell.stored)) for cell in again.cells] == [("pass", True)]
    assert Store(store.folder, fresh=True).get(RUN) is None
    store.forget([RUN])
    assert store.get(RUN) is None


def test_one_that_is_not_complete_is_not_kept(store: Store) -> None:
    store.put(dataclasses.replace(DONE, complete=False))
    assert store.get(RUN) is None


@pytest.mark.parametrize(
    "other",
    [
        {"arguments": ("t.py", "-x")},
        {"attempt": 2},
        {"environment": Environment((("lib", "1.1"),), ("dep",))},
        {"environment": Environment((("lib", "1.0"),), ("dep>1",))},
        {"environment": Environment((("lib", "1.0"),), ("dep",), "3.12")},
    ],
)
def test_another_run_is_another(store: Store, other: dict[str, Any]) -> None:
    store.put(DONE)
    assert store.get(dataclasses.replace(RUN, **other)) is None


def test_what_decides_it_and_has_changed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(DONE)
    with monkeypatch.context() as patched:
        patched.setenv("MEMLEAK_MODE", "report")
        assert store.get(RUN) is None
    with monkeypatch.context() as patched:
        patched.setattr("pytest_memleak.releases.package.fingerprint", lambda: "another")
        assert store.get(RUN) is None
    assert store.get(RUN) is not None
    Path("helper.py").touch()
    deciding._digests.clear()
    assert store.get(RUN) is None


def test_what_is_old_or_damaged_is_run_anew(store: Store) -> None:
    store.put(DONE)
    assert store.folder is not None
    (file,) = store.folder.iterdir()
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"when": "2020-01-01T00:00:00+00:00"}))
    assert store.get(RUN) is None
    file.write_text("{")
    assert store.get(RUN) is None


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("../other/test_it.py::test_it", "other/test_it.py"),
        ("../other", "other/helper.py"),
        ("--rootdir=../other", "other/pyproject.toml"),
        ("@../arguments", "arguments"),
        ("@arguments", "tests/arguments"),
        ("../other/test_it.py", "other/conftest.py"),
    ],
)
def test_what_an_argument_names_elsewhere_decides_too(store: Store, tmp_path: Path, argument: str, named: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/test_it.py").touch()
    (tmp_path / named).touch()
    run = dataclasses.replace(RUN, arguments=("t.py", argument))
    store.put(dataclasses.replace(DONE, run=run))
    deciding._digests.clear()
    assert store.get(run) is not None
    (tmp_path / named).write_text("changed")
    deciding._digests.clear()
    assert store.get(run) is None


@pytest.mark.parametrize(
    "requirement",
    [
        "../lib.whl",
        "lib @ file://{}/lib.whl",
        "lib@file://{}/lib.whl",
        "{}/lib[all] ; python_version > '3'",
        "./lib.whl",
        "lib @ ../lib",
    ],
)
def test_what_a_requirement_names_decides_too(store: Store, tmp_path: Path, requirement: str) -> None:
    (tmp_path / "lib").mkdir()
    places = [tmp_path / "lib.whl", tmp_path / "lib/code.py", tmp_path / "tests/lib.whl"]
    for place in places:
        place.touch()
    run = dataclasses.replace(RUN, environment=Environment((("lib", "1.0"),), (requirement.format(tmp_path),)))
    store.put(dataclasses.replace(DONE, run=run))
    for place in places:
        place.write_text("changed")
    deciding._digests.clear()
    assert store.get(run) is None


@pytest.mark.parametrize("name", ["conftest.py", "pytest.ini", ".pytest.ini", "pyproject.toml", "setup.cfg", "tox.ini"])
def test_what_pytest_reads_above_the_folder_decides_too(store: Store, tmp_path: Path, name: str) -> None:
    store.put(DONE)
    (tmp_path / "of-no-consequence.py").touch()
    deciding._digests.clear()
    assert store.get(RUN) is not None
    (tmp_path / name).touch()
    deciding._digests.clear()
    assert store.get(RUN) is None


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "UV_INDEX", "PIP_INDEX_URL", "CUDA_VISIBLE_DEVICES"])
def test_variables_that_decide(store: Store, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    store.put(DONE)
    monkeypatch.setenv("UV_CACHE_DIR", "/a/larger/disk")
    assert store.get(RUN) is not None
    monkeypatch.setenv(name, "another")
    assert store.get(RUN) is None


def test_what_the_call_writes_itself_is_left_out_however_it_is_named(store: Store, tmp_path: Path) -> None:
    store.written = frozenset({Path("../tests/out.json").absolute()})
    store.put(DONE)
    Path("out.json").write_text("{}")
    deciding._digests.clear()
    assert store.get(RUN) is not None


def test_what_is_old_goes_when_the_store_is_opened(store: Store) -> None:
    store.put(DONE)
    assert store.folder is not None
    old = store.folder / "old.json"
    old.touch()
    days_ago = time.time() - 8 * 24 * 3600
    os.utime(old, (days_ago, days_ago))
    Store(store.folder)
    assert not old.exists()
    assert store.get(RUN) is not None


def test_where_nothing_can_be_kept_it_says_why(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_MOST_FILES", 0)
    store.put(DONE)
    assert store.get(RUN) is None
    assert "more than 0 files lie below" in store.problem
    monkeypatch.undo()
    file = store.folder
    assert file is not None
    monkeypatch.chdir(file.parent / "tests")
    file.write_text("no folder")
    store.put(DONE)
    assert "could not be written" in store.problem
