"""`--memleak-explain=rerun`: a test whose peak broke runs once more, and everything is recorded.

The verdict is that of the first run; the second only explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from _pytest.runner import runtestprotocol

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.insides import let_go_of_failures
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.settings import ALWAYS, AUTO, RERUN, Settings
from pytest_memleak.wording import SNAPSHOT_NOTES

KNOWN_PEAKS = pytest.StashKey[dict[str, int]]()
"""Of a test that runs a second time: a little less than what it reached, by device."""

_NEARLY = 0.9
_PEAKS = ("max_peak", "max_host_peak", "gpu_cap", "baseline")


def when(item: pytest.Item, settings: Settings) -> str:
    """What to record of this run."""
    if settings.explain != RERUN:
        return settings.explain
    return ALWAYS if KNOWN_PEAKS in item.stash else AUTO


def explain(item: pytest.Item, nextitem: pytest.Item | None, reports: Sequence[pytest.TestReport]) -> None:
    """Runs the test again if a peak broke, and amends the reports of the first run."""
    first = _record(reports)
    broken = [result for result in first.results if _is_broken(result)] if first else []
    if first is None or not broken:
        return
    item.stash[KNOWN_PEAKS] = {
        "cpu" if result.device == "host" else result.device: int(_NEARLY * (result.measured or 0)) for result in broken
    }
    properties = list(item.user_properties)
    let_go_of_failures(item)  # or the first run would be in the peak of the second
    try:
        second = _record(runtestprotocol(item, nextitem=nextitem, log=False))
    finally:
        del item.stash[KNOWN_PEAKS]
        item.user_properties[:] = properties
    found = second.results if second else ()
    # Of the second run everything is recorded, and so it has the snapshot.
    notes = [note for note in second.notes if note.startswith(SNAPSHOT_NOTES)] if second else []
    results = tuple(_explained(one, found) for one in first.results)
    explained = replace(first, results=results, notes=(*first.notes, *notes))
    _amend(item, reports, failure_text(first.results), explained)


def _is_broken(result: CheckResult) -> bool:
    return result.enforced and result.verdict == "fail" and result.check in _PEAKS


def _explained(result: CheckResult, second: Sequence[CheckResult]) -> CheckResult:
    if not _is_broken(result):
        return result
    same = next((one for one in second if (one.check, one.device) == (result.check, result.device)), None)
    if same is None or same.verdict not in ("pass", "fail"):
        note = "ran once more to be explained, and ended before its promise could be judged"
        return replace(result, explanation=(*result.explanation, note))
    if not same.explanation or same.verdict != "fail":
        reached = f", and came to {format_size(same.measured)}" if same.measured is not None else ""
        note = f"ran once more to be explained{reached}: its promise did not break again"
        return replace(result, explanation=(*result.explanation, note))
    note = f"as of a second run, which came to {format_size(same.measured or 0)}; what it does was done twice"
    return replace(result, explanation=(*same.explanation, note), at_peak=same.at_peak)


def _record(reports: Sequence[pytest.TestReport]) -> TestRecord | None:
    data = next((vars(report)[RECORD] for report in reports if RECORD in vars(report)), None)
    return TestRecord.from_json(data) if data else None


def _amend(item: pytest.Item, reports: Sequence[pytest.TestReport], before: str, explained: TestRecord) -> None:
    after = failure_text(explained.results)
    failed = pytest.CallInfo.from_call(lambda: pytest.fail(after, pytrace=False), when="call")
    assert failed.excinfo is not None
    for report in reports:
        if RECORD in vars(report):
            setattr(report, RECORD, explained.as_json())
        if report.failed and str(report.longrepr).strip() == before:
            report.longrepr = item.repr_failure(failed.excinfo)
        report.sections = [(name, after if text == before else text) for name, text in report.sections]
