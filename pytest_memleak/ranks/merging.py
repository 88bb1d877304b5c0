"""Of the reports of all ranks one: what each phase of the test came to, and who failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest

from pytest_memleak.ranks import longrepr
from pytest_memleak.ranks.longrepr import Part
from pytest_memleak.ranks.records import Reckoned
from pytest_memleak.ranks.told import PHASES, Told, is_to_blame, printed
from pytest_memleak.records.attributes import RECORD, WITHHELD
from pytest_memleak.report.terminal import failure_text

_STRICT = "[XPASS(strict)]"

Report = pytest.TestReport


@dataclass
class Phase:
    """What is written over the report of one phase."""

    outcome: Literal["passed", "failed", "skipped"] = "passed"
    longrepr: Any = None
    parts: list[Part] = field(default_factory=list)
    """What the failure is made of."""
    duration: float = 0.0
    sections: list[tuple[str, str]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    def write_over(self, report: Report) -> None:
        for name in ("wasxfail", WITHHELD):
            report.__dict__.pop(name, None)
        report.outcome, report.longrepr = self.outcome, self.longrepr
        report.sections = [*report.sections, *self.sections]
        report.duration = self.duration
        report.__dict__.update(self.attributes)

    @property
    def reason(self) -> str:
        """Why it was skipped."""
        reason = str(self.longrepr[2]) if isinstance(self.longrepr, tuple) else str(self.longrepr)
        return reason.removeprefix("Skipped: ")


@dataclass(frozen=True)
class Ranks:
    """What all ranks of one attempt said."""

    size: int
    told: Sequence[Told]
    reports: Sequence[Mapping[str, Report]]
    """By rank, and then by phase."""
    subreports: Sequence[Sequence[Report]]
    """By rank: of parts of the body (subtests)."""
    why: Callable[[Told], str]
    """What became of one that did not come to its end."""


def merged(ranks: Ranks, reckoned: Reckoned) -> dict[str, Phase]:
    phases = {when: _phase(ranks, when, reckoned) for when in PHASES}
    setup, call = phases["setup"], phases["call"]
    if setup.outcome != "passed" and call.outcome == "failed":
        # No body is told of after such a set-up: what failed in that of another rank is not to be lost.
        setup.outcome, setup.parts = "failed", [*setup.parts, *call.parts]
        setup.longrepr = longrepr.of(setup.parts, ranks.size)
        setup.attributes.pop("wasxfail", None)
    _attach_printed(ranks, phases)
    phases["teardown"].attributes[RECORD] = reckoned.record.as_json()
    return phases


def _phase(ranks: Ranks, when: str, reckoned: Reckoned) -> Phase:
    reports = {rank: found[when] for rank, found in enumerate(ranks.reports) if when in found}
    phase = Phase(duration=max((report.duration for report in reports.values()), default=0.0))
    phase.sections = [
        (f"{name} of rank {rank}", text) for rank, report in reports.items() for name, text in report.sections
    ]
    of_all = _of_all(reckoned, {"call": "fail", "teardown": "inconclusive"}.get(when, ""), ranks)
    own = _parts(ranks, when, reports)
    expected = [report for report in reports.values() if report.skipped and hasattr(report, "wasxfail")]
    if of_all and not expected and reports and all(map(_was_to_fail, reports.values())):
        expected, own = list(reports.values()), []  # and it does, on all ranks together
    phase.parts = own if expected else [*own, *of_all]
    if expected and not phase.parts:
        phase.outcome, phase.longrepr = "skipped", expected[0].longrepr
        reason = str(expected[0].longrepr).removeprefix(_STRICT).strip()
        phase.attributes["wasxfail"] = getattr(expected[0], "wasxfail", reason)
    elif phase.parts:
        phase.outcome, phase.longrepr = "failed", longrepr.of(phase.parts, ranks.size)
    elif skipped := {rank: report for rank, report in reports.items() if report.skipped}:
        _skip(phase, skipped, reports, ranks)
    elif passed := [report for report in reports.values() if hasattr(report, "wasxfail")]:
        phase.attributes["wasxfail"] = passed[0].wasxfail
    withheld = any(getattr(report, WITHHELD, False) for report in reports.values()) or reckoned.undecided
    if when == "call" and withheld and phase.outcome == "passed":
        phase.attributes[WITHHELD] = True
    return phase


def _parts(ranks: Ranks, when: str, reports: Mapping[int, Report]) -> list[Part]:
    """Who failed in this phase. Where a rank was when it was stopped comes last: it may help to see why."""
    to_blame, stopped = _deaths(ranks, when, True), _deaths(ranks, when, False)
    failed = {rank: report for rank, report in reports.items() if report.failed}
    expected = [report.stop for report in reports.values() if report.skipped and hasattr(report, "wasxfail")]
    if expected and not to_blame:
        # The test fails on one rank as it was to: what the others ran into from then on may well be its doing.
        failed = {rank: report for rank, report in failed.items() if report.stop < min(expected)}
        failed = {rank: report for rank, report in failed.items() if not _was_to_fail(report)}
        stopped = stopped if failed else []
    elif any(_was_to_fail(report) for report in failed.values()) and not to_blame and not stopped:
        others = {rank: report for rank, report in failed.items() if not _was_to_fail(report)}
        failed = others or failed
    subtests = [
        Part((rank,), repr=report.longrepr, note=f", {report.head_line}")
        for rank, found in enumerate(ranks.subreports)
        for report in found
        if report.failed and when == "call"
    ]
    return [*to_blame, *subtests, *_failures(ranks, failed), *stopped]


def _was_to_fail(report: Report) -> bool:
    """It was expected to fail, and passed on its rank."""
    return str(report.longrepr).startswith(_STRICT) or (report.passed and hasattr(report, "wasxfail"))


def _skip(phase: Phase, skipped: Mapping[int, Report], reports: Mapping[int, Report], ranks: Ranks) -> None:
    first = next(iter(skipped.values()))
    if len(skipped) == len(reports):
        phase.outcome, phase.longrepr = "skipped", first.longrepr
        return
    reason = Phase(longrepr=first.longrepr).reason
    ran = [rank for rank in reports if rank not in skipped]
    text = (
        f"the ranks disagree: {longrepr.named(list(skipped), ranks.size)} skipped the test ({reason}), "
        f"{longrepr.named(ran, ranks.size)} did not"
    )
    phase.outcome, phase.longrepr = "failed", longrepr.of([Part((), text=text)], ranks.size)


def _deaths(ranks: Ranks, when: str, to_blame: bool) -> list[Part]:
    """Ranks that ended in this phase without a word, of themselves or because others had failed."""
    gone = [told for told in ranks.told if told.died_in == when]
    return [Part((told.rank,), text=ranks.why(told)) for told in gone if is_to_blame(told, ranks.told) == to_blame]


def _failures(ranks: Ranks, failed: Mapping[int, Report]) -> list[Part]:
    """The first to fail comes first: what others ran into may well be its doing. Ranks that failed alike are one."""
    alike: dict[str, list[int]] = {}
    for rank in sorted(failed, key=lambda rank: failed[rank].stop):
        alike.setdefault(str(failed[rank].longrepr), []).append(rank)
    parts = [Part(tuple(sorted(same)), repr=failed[same[0]].longrepr) for same in alike.values()]
    for part, same in zip(parts[1:], list(alike.values())[1:], strict=True):
        later = failed[same[0]].stop - failed[parts[0].ranks[0]].stop
        parts[parts.index(part)] = replace(part, note=f", {max(later, 0):.1f} s later")
    return parts


def _of_all(reckoned: Reckoned, verdict: str, ranks: Ranks) -> list[Part]:
    found = [result for result in reckoned.of_all if result.enforced and result.verdict == verdict]
    return [Part(tuple(range(ranks.size)), text=failure_text(found))] if found else []


def _attach_printed(ranks: Ranks, phases: Mapping[str, Phase]) -> None:
    """What was printed is of no phase in particular: it goes where the reader looks."""
    failed = next((phase for phase in phases.values() if phase.outcome == "failed"), None)
    there = "call" if any("call" in found for found in ranks.reports) else "setup"
    phase = failed or phases[there]
    for told in ranks.told:
        phase.sections += [
            (f"Captured {name} of rank {told.rank}", text) for name, text in printed(told).items() if text.strip()
        ]
