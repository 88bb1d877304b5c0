"""A test's own peaks and what a baseline says of them in, verdicts out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_memleak.budget.term import Term
from pytest_memleak.budget.tolerance import Tolerance
from pytest_memleak.meters.reading import Reading
from pytest_memleak.records.baselines.ratchet import RAISE
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.records.record import CheckResult, Limit, Verdict
from pytest_memleak.wording import baseline_message, size

CHECK = "baseline"
KIND = "allocated"


@dataclass(frozen=True)
class OwnPeak:
    """What a test takes of one device at its peak, with the wider fixtures that it uses and without what others hold:
    the same whichever tests ran before it."""

    device: str
    how: str
    bytes: int
    foreign: int = 0
    """Held meanwhile, and not the test's."""
    rounding: int = 0
    """What of it may be blocks that are larger than was asked for, because of what others hold: a free piece beside
    that is given whole where its rest is too small to be of use."""
    blind: str | None = None
    """Why the number cannot be trusted."""
    swayed: bool = False
    """It may as well be lower."""
    left: int = 0
    """Still held when the body had ended, and not by what its fixtures had set up."""


def own_peaks(runs: Sequence[Sequence[Reading]], devices: Sequence[str], brought: Mapping[str, int]) -> list[OwnPeak]:
    """Of each device the highest of all runs. `brought`: what the wider fixtures that the test uses hold there."""
    highest: dict[str, OwnPeak] = {}
    for whole in (reading for run in runs for reading in run):
        if whole.device not in devices or KIND not in whole.peak:
            continue
        reading = whole.without_warmup()  # which goes by what is free
        base, fixtures = reading.base_of_peak(KIND), brought.get(whole.device, 0)
        peak, foreign = max(reading.told_peak(KIND) - base + fixtures, 0), max(base - fixtures, 0)
        rounding = _rounding(reading) if foreign else 0
        own = OwnPeak(whole.device, whole.how, peak, foreign, rounding, whole.blind, whole.swayed, _left(reading))
        if own.device not in highest or own.bytes > highest[own.device].bytes:
            highest[own.device] = own
    return list(highest.values())


def _left(reading: Reading) -> int:
    """At least that: what fixtures let go of before the body began is taken for held."""
    set_up = reading.phases.get("setup", {}).get(KIND, reading.base[KIND])
    return max(reading.grown(KIND) - max(set_up - reading.base[KIND], 0), 0)


def _rounding(reading: Reading) -> int:
    if "requested" not in reading.peak:
        return 0
    grown = {kind: reading.peak[kind] - reading.base_at_peak[kind] for kind in (KIND, "requested")}
    return max(grown[KIND] - grown["requested"], 0)


def unless_rounded(peaks: Sequence[OwnPeak], recorded: Mapping[str, int], terms: Terms, backend: str) -> list[OwnPeak]:
    """As recorded, where what is more may be due to others alone."""
    return [
        replace(own, bytes=was)
        if own.bytes - own.rounding <= terms.allowed(backend, was := recorded.get(own.device, 0)) < own.bytes
        else own
        for own in peaks
    ]


def judge_baseline(
    peaks: Sequence[OwnPeak],
    recorded: Mapping[str, int] | None,
    terms: Terms,
    backend: str,
    doubts: Sequence[str] = (),
) -> list[CheckResult]:
    """`recorded`: by device; None: the test has no entry. A device that an entry does not name held nothing."""
    if recorded is None:
        return [_without_entry(own, doubts) for own in peaks if own.bytes]
    known = [own for own in peaks if own.bytes or recorded.get(own.device)] or peaks[:1]
    return [_judge(own, recorded.get(own.device, 0), terms, backend, doubts) for own in known]


def is_known(peaks: Sequence[OwnPeak], doubts: Sequence[str]) -> bool:
    """Whether they may be recorded."""
    return not doubts and all(own.blind is None for own in peaks)


def _judge(own: OwnPeak, recorded: int, terms: Terms, backend: str, doubts: Sequence[str]) -> CheckResult:
    tolerance = terms.tolerance_of(backend)
    limit = terms.allowed(backend, recorded)
    higher, why = own.bytes > limit, _why(own, doubts)
    raising = higher and not why and terms.updates(RAISE)
    verdict = _verdict(higher and not own.swayed and not raising, bool(why))
    message = baseline_message(
        "to be raised" if raising else verdict,
        measured=own.bytes,
        recorded=recorded,
        higher=higher,
        tolerance=str(tolerance),
        where=f"{KIND} on {own.device}, {own.how}",
        why=why if verdict == "inconclusive" else "",
    )
    return replace(
        _result(own, verdict, message),
        recorded=recorded,
        limit=None if raising else _limit(recorded, limit, tolerance, terms),
        details=(f"{size(own.foreign)} that others held meanwhile are not counted",) if own.foreign else (),
        advice=_advice(own, recorded, terms.shown) if verdict == "fail" else "",
    )


def _limit(recorded: int, limit: int, tolerance: Tolerance, terms: Terms) -> Limit:
    if limit == recorded:
        return Limit("recorded", limit, terms.shown)
    parts = (
        Term("recorded", recorded, f"its peak in {terms.shown}"),
        Term("tolerance", limit - recorded, f"{tolerance} (--memleak-baseline-tolerance)"),
    )
    return Limit("recorded + tolerance", limit, terms.shown, parts)


def _verdict(broken: bool, doubtful: bool) -> Verdict:
    if broken:
        return "fail"
    return "inconclusive" if doubtful else "pass"


def _advice(own: OwnPeak, recorded: int, shown: str) -> str:
    first = _CACHE.format(size(own.left)) if own.left * 2 >= own.bytes - recorded else ""
    return first + _ADVICE.format(shown)


_CACHE = (
    "{} were still held when the body had ended: is it a cache that the first test to use it fills? Then build it in a "
    "wider fixture that all its tests use, so that none pays for it alone. Else "
)
_ADVICE = (
    "find what is new at the peak and release it earlier; if it is needed, record it: run the test with "
    "--memleak-update=raise, and commit {}"
)


def _without_entry(own: OwnPeak, doubts: Sequence[str]) -> CheckResult:
    why = _why(own, doubts)
    what = f"not to be recorded: {why}" if why else "not recorded yet"
    message = f"{CHECK}: peak {size(own.bytes)}, {what} ({KIND} on {own.device}, {own.how})"
    return replace(_result(own, "pass", message), enforced=False)


def _result(own: OwnPeak, verdict: Verdict, message: str) -> CheckResult:
    return CheckResult(
        CHECK,
        verdict,
        message,
        device=own.device,
        kind=KIND,
        how=own.how,
        measured=own.bytes,
        base=own.foreign,
    )


def _why(own: OwnPeak, doubts: Sequence[str]) -> str:
    """Why its peak is not to be relied on; empty if it is."""
    return "; ".join([*doubts, *filter(None, [own.blind])])
