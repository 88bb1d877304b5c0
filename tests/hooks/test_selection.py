"""Whether a run has all tests there are, told from its command line and its reports."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_memleak.hooks.selection import Selection


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ([], ""),
        (["-x", "-k", ""], ""),
        (["--ff"], ""),
        (["-k", "a"], "-k"),
        (["-m", "not slow"], "-m"),
        (["--lf"], "--lf"),
        (["--sw"], "--stepwise"),
        (["--deselect=test_it.py::test_a"], "--deselect"),
        (["--ignore=other"], "--ignore"),
        (["--ignore-glob=other*"], "--ignore-glob"),
        (["test_it.py"], "tests were named on the command line"),
        (["test_it.py::test_a"], "tests were named on the command line"),
        (["."], "tests were named on the command line"),
    ],
)
def test_what_narrows_a_run_is_named(pytester: pytest.Pytester, args: list[str], why: str) -> None:
    pytester.makepyfile(test_it="def test_a(): ...")
    pytester.makeini("[pytest]")
    assert Selection(pytester.parseconfig(*args)).narrowed([]) == why


def test_testpaths_are_all_tests_and_a_folder_below_is_not(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\ntestpaths = sub")
    folder = pytester.mkdir("sub")
    assert Selection(pytester.parseconfig()).narrowed([]) == ""
    monkeypatch.chdir(folder)
    assert Selection(pytester.parseconfig()).narrowed([]) == "it was started below the root folder"


def test_tests_that_nobody_told_of_were_not_run(pytester: pytest.Pytester) -> None:
    selection = Selection(pytester.parseconfig())
    selection.pytest_xdist_node_collection_finished(None, ["a", "b"])
    assert selection.narrowed(["a", "b", "c"]) == ""
    assert selection.narrowed(["a"]) == "not all tests were run"


def test_what_a_worker_saw_counts(pytester: pytest.Pytester) -> None:
    selection = Selection(pytester.parseconfig())
    selection.pytest_testnodedown(SimpleNamespace(workeroutput=None), None)
    assert selection.narrowed([]) == ""
    selection.pytest_testnodedown(SimpleNamespace(workeroutput={"memleak_narrowed": "tests were deselected"}), None)
    assert selection.narrowed([]) == "tests were deselected"


@pytest.mark.parametrize(("kept", "why"), [(2, ""), (1, "tests were deselected")])
def test_tests_that_were_taken_away_without_a_word_are_missed(pytester: pytest.Pytester, kept: int, why: str) -> None:
    selection, items = Selection(pytester.parseconfig()), pytester.getitems("def test_a(): ...\ndef test_b(): ...")
    around = selection.pytest_collection_modifyitems(items)
    next(around)
    items[:] = list(reversed(items))[:kept]
    assert next(around, None) is None
    assert selection.narrowed([]) == why


def test_what_skips_itself_is_open_with_all_below_it_and_what_was_read_is_not(pytester: pytest.Pytester) -> None:
    selection = Selection(pytester.parseconfig())
    for name in ("test_read", "test_class", "test_left_out", "sub/test_it"):
        path = pytester.path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for node in ("test_read.py", "test_class.py"):
        selection.pytest_collectreport(pytest.CollectReport(node, "passed", None, []))
    for node in ("test_class.py::TestSkips", "sub"):
        selection.pytest_collectreport(pytest.CollectReport(node, "skipped", None, []))
    is_open = {
        "test_read.py::test_a": False,
        "test_class.py::TestSkips::test_a": True,
        "test_class.py::TestSkipsNot::test_a": False,
        "sub/test_it.py::test_a": True,
        "test_left_out.py::test_a": True,
        "test_deleted.py::test_a": False,
    }
    assert {test: selection.is_open(test) for test in is_open} == is_open
    assert selection.narrowed([]) == ""
