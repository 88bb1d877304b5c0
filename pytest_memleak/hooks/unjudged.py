"""Tests that cannot be judged as they asked to be: an error that says why, in the report and in the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from _pytest.outcomes import Failed

from pytest_memleak.errors import MemleakError
from pytest_memleak.hooks.attributes import BAD_MARK
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.record import CheckResult, TestRecord

_WHY = pytest.StashKey[str]()
"""Why a test was refused before it began."""


class Refused(Failed):
    """A test that cannot be judged as it was asked for: an error, also where a failure was expected."""


@contextlib.contextmanager
def refusing(item: pytest.Item) -> Iterator[None]:
    """Around what a test needs before it begins."""
    item.stash[_WHY] = ""
    if bad := item.stash.get(BAD_MARK, None):
        item.stash[_WHY] = str(bad)
        raise Refused(str(bad), pytrace=False)
    try:
        yield
    except MemleakError as error:
        item.stash[_WHY] = str(error)
        raise Refused(f"pytest-memleak: {error}", pytrace=False) from None


def insist(report: pytest.TestReport, call: pytest.CallInfo[None]) -> bool:
    """An expected failure is about the test's own; that it could not be judged is not one. True if that is so."""
    if call.excinfo is None or not isinstance(call.excinfo.value, Refused):
        return False
    report.outcome = "failed"
    report.longrepr = str(call.excinfo.value)
    report.__dict__.pop("wasxfail", None)
    return True


def record_refusal(report: pytest.TestReport, item: pytest.Item) -> None:
    """On the report of the teardown, if the test was refused."""
    why = item.stash.get(_WHY, "")
    if report.when != "teardown" or not why:
        return
    path, line, _ = item.location
    result = CheckResult("set-up", "inconclusive", f"set-up INCONCLUSIVE: {why}")
    setattr(report, RECORD, TestRecord(item.nodeid, path, (line or 0) + 1, results=(result,)).as_json())
