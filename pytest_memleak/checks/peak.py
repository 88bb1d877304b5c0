"""`max_peak` and `max_host_peak`: readings and a limit in, a verdict out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.meters.reading import COMMITTED, PREDICTED, Levels, Reading
from pytest_memleak.plan import TOGETHER, Budget, HostPeakBudget, PeakBudget
from pytest_memleak.ranks.world import World, current
from pytest_memleak.records.record import CheckResult, Limit, Verdict
from pytest_memleak.wording import host_peak_message, peak_message, readable_above, size

TermOf = Callable[[str], Term]

_PHASES = {"setup": "set-up of its fixtures", "call": "body"}
_HEADROOM = 1.05
_A_PART = "it is a part of what all ranks may have"


def judge_peak(
    budget: PeakBudget | None,
    readings: Sequence[Reading],
    term_of: TermOf,
    doubts: Sequence[str] = (),
    check: str = "max_peak",
) -> list[CheckResult]:
    """One result for each device that was used. Without a budget: what was read, for report mode."""
    kind = (budget.of if budget else None) or "allocated"
    world = current()
    if budget and budget.rank is not None and world is None:
        return [_without_ranks(check, budget.rank)]
    try:
        limit = evaluate(budget, term_of) if budget and not _is_anothers(budget.rank, world) else None
        concerned = _concerned(readings, kind, budget.device if budget else None)
        counted = budget is None or budget.warmup
    except (Inconclusive, BadInput) as error:
        return [inconclusive(check, str(error))]
    together = budget is not None and budget.rank in TOGETHER
    results = [_judge_device(check, reading, kind, limit, doubts, counted) for reading in concerned]
    used = [result for result in results if result.measured or result.verdict != "pass"] or results[:1]
    if budget and limit is None:
        return [replace(result, enforced=False) for result in used]
    return [_for_all_ranks_to_judge(result) for result in used] if together else used


def judge_host_peak(
    budget: HostPeakBudget,
    reading: Reading,
    term_of: TermOf,
    doubts: Sequence[str] = (),
    beside: str = "",
) -> CheckResult:
    """Growth over the window's start: what else the process holds is not the test's."""
    world = current()
    if budget.rank is not None and world is None:
        return _without_ranks("max_host_peak", budget.rank)
    try:
        limit = None if _is_anothers(budget.rank, world) else evaluate(budget, term_of)
    except (Inconclusive, BadInput) as error:
        return inconclusive("max_host_peak", str(error))
    grown = reading.peak[COMMITTED] - reading.base_at_peak[COMMITTED]
    verdict, why = _verdict(grown, grown, limit, [*doubts, *filter(None, [reading.blind])], reading.swayed)
    if budget.rank in TOGETHER and verdict != "inconclusive":
        verdict, why = "not judged", _A_PART
    return CheckResult(
        check="max_host_peak",
        verdict=verdict,
        message=host_peak_message(
            verdict, measured=grown, limit=limit.bytes if limit else None, kind=COMMITTED, how=reading.how, why=why
        ),
        device=reading.device,
        kind=COMMITTED,
        how=reading.how,
        measured=grown,
        base=reading.base_at_peak[COMMITTED],
        limit=limit,
        details=(*_phases(reading, COMMITTED), *filter(None, [beside])),
        advice=_advice("max_host_peak", verdict, grown, limit),
        enforced=limit is not None and budget.rank not in TOGETHER,
    )


def evaluate(budget: Budget, term_of: TermOf) -> Limit:
    amount, terms = budget.limit.evaluate(term_of)
    return Limit(budget.limit.text, amount, budget.source, terms)


def inconclusive(check: str, why: str) -> CheckResult:
    return CheckResult(check=check, verdict="inconclusive", message=f"{check} INCONCLUSIVE: {why}")


def _without_ranks(check: str, rank: object) -> CheckResult:
    return inconclusive(check, f"rank={rank}, but the test runs in one process: put it on ranks(2)")


def _is_anothers(rank: int | str | None, world: World | None) -> bool:
    """Another rank's promise: here it is only read."""
    return rank is not None and rank not in TOGETHER and world is not None and rank != world.rank


def _for_all_ranks_to_judge(result: CheckResult) -> CheckResult:
    if result.verdict not in ("pass", "fail") or result.measured is None or result.limit is None:
        return replace(result, enforced=False)
    message = peak_message(
        "not judged",
        measured=result.measured,
        limit=result.limit.bytes,
        kind=result.kind,
        device=result.device,
        how=result.how,
        why=_A_PART,
    )
    return replace(result, verdict="not judged", message=message, advice="", enforced=False)


def _judge_device(
    check: str, whole: Reading, kind: str, limit: Limit | None, doubts: Sequence[str], with_warmup: bool
) -> CheckResult:
    reading = whole if with_warmup else whole.without_warmup()
    # Memory that was never seen being allocated was there at the peak or was not: both bounds must agree.
    peak, highest = reading.certain_peak(kind), reading.possible_peak(kind)
    doubtful = [*doubts, *filter(None, [reading.blind])]
    verdict, why = _verdict(peak, highest, limit, doubtful, reading.swayed, reading.unseen_is)
    shown = reading.told_peak(kind) if verdict == "pass" else peak
    return CheckResult(
        check=check,
        verdict=verdict,
        message=peak_message(
            verdict,
            check=check,
            measured=shown,
            limit=limit.bytes if limit else None,
            kind=kind,
            device=reading.device,
            how=reading.how,
            why=why,
        ),
        device=reading.device,
        kind=kind,
        how=reading.how,
        measured=shown,
        base=reading.base_of_peak(kind),
        limit=limit,
        let_go_of=reading.let_go_of,
        details=(
            *_warmup(whole, kind, with_warmup),
            *_phases(reading, kind),
            *_other_kinds(reading.peak, kind),
            *_unseen(reading),
        ),
        advice=_advice(check, verdict, peak, limit, reading.base_of_peak(kind)),
    )


def _verdict(
    lowest: int, highest: int, limit: Limit | None, doubts: Sequence[str], swayed: bool = False, hidden: str = ""
) -> tuple[Verdict, str]:
    if limit is None:
        return "pass", "; ".join(doubts)
    if lowest > limit.bytes and not swayed:
        return "fail", ""  # whatever could not be seen can only add to it
    if doubts:
        return "inconclusive", "; ".join(doubts)
    if highest > limit.bytes:
        return "inconclusive", f"{size(highest - lowest)} of {hidden} may or may not have been there at the peak"
    return "pass", ""


def _concerned(readings: Sequence[Reading], kind: str, device: str | int | None) -> list[Reading]:
    fitting = [reading for reading in readings if kind in reading.peak]
    if not fitting:
        known = ", ".join(sorted({known for reading in readings for known in reading.peak if known != COMMITTED}))
        devices = ", ".join(reading.device for reading in readings)
        raise BadInput(f"of={kind!r} cannot be read on {devices}: it tells {known}")
    if device is None:
        return fitting
    wanted = [reading for reading in fitting if _is_device(reading.device, device)]
    if not wanted:
        devices = ", ".join(reading.device for reading in fitting)
        raise BadInput(f"device={device!r} is not on this card, which has {devices}")
    return wanted


def _is_device(name: str, wanted: str | int) -> bool:
    """Whether a device is meant. The CPU stands in for the first device of any card."""
    kind, _, index = name.partition(":")
    wanted_kind, _, wanted_index = str(wanted).partition(":")
    if str(wanted).isdigit():
        wanted_kind, wanted_index = kind, str(wanted)
    if kind == "cpu":
        return wanted_index in ("", "0")
    return wanted_kind == kind and (not wanted_index or wanted_index == index)


def _phases(reading: Reading, kind: str) -> tuple[str, ...]:
    named = [
        (words, reading.phases[phase][kind] + reading.there_throughout)
        for phase, words in _PHASES.items()
        if phase in reading.phases
    ]
    if len(named) < 2:
        return ()
    return ("highest in the " + ", in the ".join(f"{words}: {size(level)}" for words, level in named),)


def _warmup(whole: Reading, kind: str, counted: bool) -> tuple[str, ...]:
    """Both numbers, wherever the highest level was reached in a warm-up of the allocator."""
    peak, without = whole.certain_peak(kind), whole.without_warmup().certain_peak(kind)
    if peak == without:
        return ()
    if counted:
        return (f"the peak was that of transformers' allocator warm-up; without the warm-up: {size(without)}",)
    return (f"transformers' allocator warm-up is not counted; with the warm-up: {size(peak)}",)


def _other_kinds(levels: Levels, kind: str) -> tuple[str, ...]:
    others = [f"{other} {size(level)}" for other, level in levels.items() if other not in (kind, COMMITTED)]
    return ("peaks of the other counts: " + ", ".join(others),) if others else ()


def _unseen(reading: Reading) -> tuple[str, ...]:
    unseen, lines = max(reading.unseen, reading.unseen_peak), []
    if unseen and reading.how == PREDICTED:
        lines.append(f"at most {size(unseen)} more at the peak: {reading.unseen_is}")
    elif unseen:
        lines.append(
            f"{size(unseen)} are in tensors whose memory torch did not allocate (mapped files, numpy): counted in full"
        )
    if reading.let_go_of:
        lines.append(f"{size(reading.let_go_of)} in mapped files came and went: not counted")
    return tuple(lines)


def _advice(check: str, verdict: Verdict, measured: int, limit: Limit | None, base: int = 0) -> str:
    if verdict != "fail" or limit is None:
        return ""
    if base > limit.bytes:
        return (
            f"{size(base)} were held before it began, more than the limit: release what wider fixtures or earlier "
            "tests hold, or allow for it"
        )
    enough = readable_above(int(measured * _HEADROOM))
    written = f'{check}("{enough}")' if check.startswith("max_") else f'limit("{enough}")'
    return f"find what was alive at the peak and release it earlier; if it is needed, allow it: {written}"
