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


@dataclass
class Told:
    """The lines of `told.py`, sorted."""

    collected: list[str] = field(default_factory=list)
    uncollected: list[tuple[str, str]] = field(default_factory=list)
    reports: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """By test and by phase; a rerun replaces what was said before."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    ended: bool = False

    @classmethod
    def read(cls, text: str) -> Told:
        told = cls()
        for line in text.splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                continue  # the last one of a process that was killed
            what = data.pop("what")
            if what == "collected":
                told.collected = data["nodes"]
            elif what == "uncollected":
                told.uncollected.append((data["node"], data["text"]))
            elif what == "report":
                if data["when"] == "setup":
                    told.reports.pop(data["node"], None)
                told.reports.setdefault(data["node"], {})[data["when"]] = data
            elif what == "end":
                told.elsewhere, told.ended = data["elsewhere"], True
        return told


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
    complete = not doubt and not told.uncollected and bool(told.reports)
    return Outcome(run, tuple(cells), complete)


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
    if document is None:
        return "pytest-memleak wrote no results: was it switched off?"
    return ""


def _verdict(reports: dict[str, dict[str, Any]], record: TestRecord | None, doubt: str) -> tuple[Verdict, str]:
    setup, call, teardown = (reports.get(when) for when in ("setup", "call", "teardown"))
    if setup is None or teardown is None:
        odd = next(iter(reports.values()), None)  # a worker of xdist that crashed says so in its own way
        told = first_line(odd["message"]) if odd and odd["outcome"] == "failed" else ""
        return "not-run", doubt or told or "it did not come to its end"
    said = _of_memleak(record)
    if said and said[0] == "fail":
        return said
    if said and any(report["outcome"] == "failed" for report in reports.values()):
        return said
    if setup["outcome"] == "failed":
        return "not-run", f"error in its set-up: {first_line(setup['message'])}"
    last = call or setup
    if last["outcome"] == "skipped":
        if last["xfail"] is not None:
            return "fail", f"failed, as it is marked to (xfail): {last['xfail'] or first_line(last['message'])}"
        return "not-run", f"skipped: {first_line(last['message']).removeprefix('Skipped: ')}"
    for report, where in ((last, ""), (teardown, "error in its tear-down: ")):
        if report["outcome"] == "failed":
            return "fail", where + first_line(report["message"])
    if said or doubt:
        return said or ("inconclusive", doubt)
    return "pass", ""


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
    reports: dict[str, dict[str, Any]],
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
