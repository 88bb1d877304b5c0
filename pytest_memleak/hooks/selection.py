"""Which tests a run can tell of: what is not among a few selected ones, or is in a file that was not read, need not be
gone."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

_NARROWED, _READ, _SKIPPED = "memleak_narrowed", "memleak_collectors_read", "memleak_collectors_skipped"
_EMPTY = "memleak_functions_without_parameters"
_OPTIONS = {
    "keyword": "-k",
    "markexpr": "-m",
    "lf": "--lf",
    "stepwise": "--stepwise",
    "deselect": "--deselect",
    "ignore": "--ignore",
    "ignore_glob": "--ignore-glob",
}


class Selection:
    """Registered wherever tests are collected; what xdist's workers saw comes to the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._why = _by_options(config)
        self._collected: set[str] = set()
        self._read: set[str] = set()
        """Node ids of files and classes whose tests are known, if only that there are none."""
        self._skipped: set[str] = set()
        """Of those that would not be collected: nobody knows what tests they have."""
        self._without_parameters: set[str] = set()
        """Functions whose list of parameters was empty here, as one that is read from the network may be."""

    def narrowed(self, told_of: Collection[str]) -> str:
        """Why the run had not all tests; empty if it had. `told_of`: tests that have a report."""
        if self._why:
            return self._why
        return "not all tests were run" if self._collected - set(told_of) else ""

    def is_open(self, test: str) -> bool:
        """Whether a test may be there, though none of that name was collected: its file or class skips itself here, or
        was left out (`collect_ignore`, a plugin). One is gone if its file was read, or is no longer there."""
        if _function_of(test) in self._without_parameters:
            return True
        if any(_is_below(test, skipped) for skipped in self._skipped):
            return True
        file = _file_of(test)
        return file not in self._read and Path(self._config.rootpath, file).exists()

    # Around all others: some plugins that split a suite take tests away without a word.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> Generator[None, object, object]:
        before = list(items)
        result = yield
        # By identity: pytest-xdist may put a test's group into its id, which its hash is made of.
        still_there = set(map(id, items))
        if not all(id(item) in still_there for item in before):
            self._narrow("tests were deselected")
        return result

    def pytest_deselected(self) -> None:
        self._narrow("tests were deselected")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._narrow("not everything could be collected")
        elif report.skipped:
            self._skipped.add(report.nodeid)
        else:
            self._read.add(report.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._take(item.nodeid for item in session.items)
        self._without_parameters.update(_function_of(item.nodeid) for item in session.items if _lacks_parameters(item))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: list[str]) -> None:
        self._take(ids)

    def pytest_sessionfinish(self) -> None:
        if (output := getattr(self._config, "workeroutput", None)) is not None:
            # xdist itself passes on a skip only once if several files share its reason.
            output.update({_NARROWED: self._why, _READ: sorted(self._read), _SKIPPED: sorted(self._skipped)})
            output[_EMPTY] = sorted(self._without_parameters)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        # One that was killed does not tell what it was given: the others have collected the same.
        output = getattr(node, "workeroutput", None) or {}
        self._narrow(output.get(_NARROWED, ""))
        self._read.update(output.get(_READ, ()))
        self._skipped.update(output.get(_SKIPPED, ()))
        self._without_parameters.update(output.get(_EMPTY, ()))

    def _take(self, tests: Iterable[str]) -> None:
        collected = set(tests)
        self._collected |= collected
        self._read.update(map(_file_of, collected))

    def _narrow(self, why: str) -> None:
        self._why = self._why or why


def _function_of(test: str) -> str:
    return test.partition("[")[0]


def _lacks_parameters(item: pytest.Item) -> bool:
    """Of an empty list pytest makes one test, which it skips, with something of its own instead of a value."""
    values = getattr(getattr(item, "callspec", None), "params", {}).values()
    return any(type(value).__name__ == "NotSetType" for value in values)


def _file_of(test: str) -> str:
    return test.partition("::")[0]


def _is_below(test: str, node: str) -> bool:
    return node in ("", ".") or test == node or test.startswith((f"{node}::", f"{node}/"))


def _by_options(config: pytest.Config) -> str:
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return "tests were named on the command line"
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS and config.invocation_params.dir != config.rootpath:
        return "it was started below the root folder"
    return next((flag for name, flag in _OPTIONS.items() if getattr(config.option, name, None)), "")
