"""From what pytest said inside an environment to cells. A test that did not run to its end is never green."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.releases.cell import Cell, Outcome, Run, Verdict
from pytest_memleak.releases.environment import DISK_IS_FULL
from pytest_memleak.releases.processes import Ended

_DONE, _FAILED, _NONE_COLLECTED = 0, 1, 5
_PEAKS = ("max_peak", "max_host_peak")
_RERUN = "rerun"
"""The outcome that pytest-rerunfailures gives to a failure that does not count: the test is set up once more."""

Report = dict[str, Any]


@dataclass
class Told:
    """The lines of `told.py`, sorted."""

    collected: list[str] = field(default_factory=list)
    uncollected: list[tuple[str, str]] = field(default_factory=list)
    reports: dict[str, dict[str, Report]] = field(default_factory=dict)
    """By test and by phase; a rerun replaces what was said before, and nothing else replaces a failure."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    @classmethod
    def read(cls, text: str) -> Told:
        told = cls()
        attempts: dict[str, list[list[Report]]] = {}
        for line in text.splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                continue  # the last one of a process that was killed
            what = data.pop("what")
            if what == "collected":
                # Each worker of xdist collects all of them.
                told.collected = list(dict.fromkeys([*told.collected, *data["nodes"]]))
            elif what == "uncollected":
                told.uncollected.append((data["node"], data["text"]))
            elif what == "report":
                _add(attempts.setdefault(data["node"], []), data)
            elif what == "end":
                told.elsewhere, told.ended = data["elsewhere"], True
        told.reports = {node: _merged(of_node) for node, of_node in attempts.items()}
        return told


def _add(attempts: list[list[Report]], report: Report) -> None:
    """A test that is set up again runs again: for a rerun, or because it is there twice (``--keep-duplicates``)."""
    if attempts and report["when"] == "setup" and any(one["outcome"] == _RERUN for one in attempts[-1]):
        attempts.pop()
        attempts.append([])
    elif not attempts or report["when"] == "setup":
        attempts.append([])
    attempts[-1].append(report)


def _merged(attempts: Iterable[Iterable[Report]]) -> dict[str, Report]:
    """One report for each phase. Of several (a test's subtests come before itself, as its body) a red one is kept."""
    merged: dict[str, Report] = {}
    for report in (report for attempt in attempts for report in attempt):
        before = merged.get(report["when"])
        if before is None or not _is_red(before):
            merged[report["when"]] = report
        elif _is_red(report):
            # A case looks for its words in all that failed.
            merged[report["when"]] = before | {"text": f"{before['text']}\n{report['text']}"}
    return merged


def _is_red(report: Report) -> bool:
    return report["outcome"] == "failed" or (report["outcome"] == "skipped" and report["xfail"] is not None)


def judged(run: Run, ended: Ended, told: Told, document: dict[str, Any] | None, installed: dict[str, str]) -> Outcome:
    """`document` is what ``--memleak-json`` wrote, if it did."""
    records = {test["nodeid"]: TestRecord.from_json(test) for test in (document or {}).get("tests", ())}
    doubt = _doubt(ended, told, document, run.timeout)
    cells = []
    for node in dict.fromkeys([*told.collected, *told.reports]):
        verdict, reason = _verdict(told.reports.get(node, {}), records.get(node), doubt)
        if told.elsewhere and verdict != "not-run":
            verdict, reason = "inconclusive", doubt  # a failure of other code says as little
        cells.append(_cell(run, node, verdict, reason, told.reports.get(node, {}), records.get(node), installed))
    for node, text in told.uncollected:
        reason = f"{node or 'it'} could not be collected: {last_line(text)}"
        cells.append(Cell(run.environment.versions, node or run.names[0], "not-run", reason, installed=installed))
    if not cells:
        reason = _nothing(ended, run.timeout)
        cells = [Cell(run.environment.versions, name, "not-run", reason, installed=installed) for name in run.names]
    collected = not doubt and not told.uncollected and bool(told.reports)
    # What broke a set-up may be gone the next time: a full disk, a server that was down.
    complete = collected and all(cell.verdict != "not-run" or _was_skipped(told, cell.test) for cell in cells)
    return Outcome(run, tuple(cells), complete, collected)


def _was_skipped(told: Told, node: str) -> bool:
    return any(report["outcome"] == "skipped" for report in told.reports.get(node, {}).values())


def _doubt(ended: Ended, told: Told, document: dict[str, Any] | None, timeout: float) -> str:
    """Why a green test of this process may not be taken for one."""
    if ended.timed_out:
        return f"it took longer than {timeout:g} s and was ended"
    if told.elsewhere:
        places = ", ".join(f"{package} was imported from {file}" for package, file in told.elsewhere.items())
        return f"{places}, and not from its environment"
    if ended.status < 0:
        return f"pytest was ended by signal {-ended.status}"
    if ended.status not in (_DONE, _FAILED) or not told.ended:
        return f"pytest left with status {ended.status}: {last_line(ended.output)}"
    if ended.status == _FAILED and not told.uncollected and not _any_failed(told):
        return f"pytest left with status {ended.status}, though no test failed: {last_line(ended.output)}"
    if document is None:
        return "pytest-memleak wrote no results: was it switched off?"
    return ""


def _any_failed(told: Told) -> bool:
    return any(report["outcome"] == "failed" for reports in told.reports.values() for report in reports.values())


def _verdict(reports: dict[str, Report], record: TestRecord | None, doubt: str) -> tuple[Verdict, str]:
    setup, call, teardown = (reports.get(when) for when in ("setup", "call", "teardown"))
    failed = [report for report in reports.values() if report["outcome"] == "failed"]
    if setup is None or teardown is None or any(report["outcome"] == _RERUN for report in reports.values()):
        # A worker of xdist that crashed says so in its own way.
        return "not-run", doubt or (first_line(failed[0]["message"]) if failed else "it did not come to its end")
    said = _of_memleak(record)
    if said and (failed or said[0] == "fail"):
        return said
    if setup["outcome"] == "failed":
        return "not-run", f"error in its set-up: {first_line(setup['message'])}"
    last = call or setup
    if last["outcome"] == "skipped":
        return _skipped(last)
    if call is None:
        return "not-run", "its body was not run"  # --setup-only
    for report in failed:
        return "fail", ("error in its tear-down: " if report is teardown else "") + first_line(report["message"])
    if said or doubt:
        return said or ("inconclusive", doubt)
    return "pass", ""


def _skipped(last: Report) -> tuple[Verdict, str]:
    xfail, message = last["xfail"], first_line(last["message"])
    if xfail is None:
        return "not-run", f"skipped: {message.removeprefix('Skipped: ')}"
    if "[NOTRUN]" in xfail:  # xfail(run=False), in pytest's own words
        return "not-run", f"skipped: xfail(run=False) {xfail.partition('[NOTRUN]')[2].strip()}"
    if last["when"] == "setup":
        return "not-run", f"error in its set-up (xfail): {xfail or message}"
    return "fail", f"failed, as it is marked to (xfail): {xfail or message}"


def _of_memleak(record: TestRecord | None) -> tuple[Verdict, str] | None:
    """What the plugin found, if that alone decides."""
    if record is None or record.verdict not in ("fail", "inconclusive"):
        return None
    worst = next(one for one in record.results if one.enforced and one.verdict == record.verdict)
    return ("fail" if record.verdict == "fail" else "inconclusive"), worst.message


def _cell(
    run: Run,
    node: str,
    verdict: Verdict,
    reason: str,
    reports: dict[str, Report],
    record: TestRecord | None,
    installed: dict[str, str],
) -> Cell:
    highest = highest_peak(record)
    return Cell(
        versions=run.environment.versions,
        test=node,
        verdict=verdict,
        reason=" ".join(reason.split()),
        peak=highest.measured if highest else None,
        peak_how=f"{highest.check}, {highest.kind} on {highest.device}, {highest.how}" if highest else "",
        seconds=sum(report["seconds"] for report in reports.values()),
        failure="\n".join(report["text"] for report in reports.values() if report["outcome"] != "passed"),
        record=record,
        installed=installed,
    )


def highest_peak(record: TestRecord | None) -> CheckResult | None:
    """That of the card, else that of the host."""
    for check in _PEAKS:
        if found := highest(record.results if record else (), check):
            return found
    return None


def highest(results: Iterable[CheckResult], check: str) -> CheckResult | None:
    found = [one for one in results if one.check == check and one.measured is not None]
    return max(found, key=lambda one: one.measured or 0, default=None)


def _nothing(ended: Ended, timeout: float) -> str:
    if ended.timed_out:
        return f"it took longer than {timeout:g} s and was ended before any test was collected"
    if ended.status == _NONE_COLLECTED:
        return "no test was collected"
    if ended.status < 0:
        return f"pytest was ended by signal {-ended.status} before any test was collected"
    return f"pytest left with status {ended.status}: {last_line(ended.output)}"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason was given")


def last_line(output: str) -> str:
    """The line that tells: pytest's own summary of what went wrong ends with rules and counts."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if full := [line for line in lines if DISK_IS_FULL in line]:
        return f"the disk is full: {full[-1]}"
    return _telling(lines) or "it said nothing"


def _telling(lines: Sequence[str]) -> str:
    if usage := [line.partition(": error: ")[2] for line in lines if ": error: " in line]:
        return usage[-1]  # what argparse says below the usage
    for start in ("E   ", "ERROR: ", "INTERNALERROR> "):
        if found := [line for line in lines if line.startswith(start)]:
            return found[-1].removeprefix(start).strip()
    words = [line for line in lines if not line.startswith(("=", "-", "!", "_"))]
    return words[-1] if words else (lines[-1] if lines else "")
