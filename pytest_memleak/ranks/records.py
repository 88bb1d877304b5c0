"""Of the records of all ranks one, with each result's rank, and what is promised of all ranks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.plan import TOGETHER, HostPeakBudget, PeakBudget
from pytest_memleak.records.baselines.entry import Entry
from pytest_memleak.records.record import CheckResult, TestRecord, Verdict
from pytest_memleak.wording import peak_message


@dataclass(frozen=True)
class Reckoned:
    record: TestRecord
    of_all: tuple[CheckResult, ...] = ()
    """Verdicts on all ranks together, which none of them could reach."""

    @property
    def undecided(self) -> bool:
        return any(result.enforced and result.verdict == "inconclusive" for result in self.of_all)


def reckon(
    empty: TestRecord,
    records: Mapping[int, TestRecord],
    ranks: int,
    budgets: Mapping[str, PeakBudget | HostPeakBudget | None],
    deaths: Mapping[int, str],
    report: bool = False,
) -> Reckoned:
    """`records`: of those ranks that came to their end; `deaths`: of the others, what became of them. `budgets`: by the
    check that judges them."""
    results = [
        replace(result, rank=rank, message=f"rank {rank}: {result.message}")
        for rank, record in sorted(records.items())
        for result in record.results
    ]
    results += [
        CheckResult("ranks", "fail", message.splitlines()[0], rank=rank, details=tuple(message.splitlines()[1:]))
        for rank, message in sorted(deaths.items())
    ]
    of_all = tuple(
        one
        for check, budget in budgets.items()
        if budget is not None and budget.rank in TOGETHER
        for one in _together(check, budget.rank == "sum", results, ranks, deaths, report)
    )
    first = records[min(records)] if records else empty
    record = replace(
        empty,
        card=first.card,
        results=(*of_all, *results),
        blocks=tuple(replace(one, rank=rank) for rank, record in sorted(records.items()) for one in record.blocks),
        timelines=tuple(
            replace(one, rank=rank) for rank, record in sorted(records.items()) for one in record.timelines
        ),
        notes=_notes(records),
        duration=max((record.duration for record in records.values()), default=0.0),
        ranks=ranks,
        baseline=_baseline(list(records.values())) if len(records) == ranks and not deaths else None,
    )
    return Reckoned(record, of_all)


def _notes(records: Mapping[int, TestRecord]) -> tuple[str, ...]:
    """What all say is said once."""
    who: dict[str, list[int]] = {}
    for rank, record in sorted(records.items()):
        for note in record.notes:
            who.setdefault(note, []).append(rank)
    return tuple(
        note if len(ranks) == len(records) else f"{note} (rank {', '.join(map(str, ranks))})"
        for note, ranks in who.items()
    )


def _baseline(records: Sequence[TestRecord]) -> Entry | None:
    """One entry of all ranks' peaks, each under its rank's name; None if one of them has none to tell."""
    entries = [record.baseline for record in records if record.baseline is not None]
    if len(entries) < len(records) or len({entry.key for entry in entries}) > 1:
        return None
    return Entry(entries[0].key, {name: count for entry in entries for name, count in entry.values.items()})


def _together(
    check: str,
    summed: bool,
    results: Sequence[CheckResult],
    ranks: int,
    deaths: Mapping[int, str],
    report: bool,
) -> tuple[CheckResult, ...]:
    """One verdict on the highest of all ranks' peaks, or on their sum."""
    place = f"{ranks} ranks together" if summed else f"the highest of {ranks} ranks"
    peaks = [result for result in results if result.check == check]
    missing = [rank for rank in range(ranks) if not any(one.rank == rank for one in peaks)]
    if deaths or any(one.verdict == "not judged" and one.measured is None for one in peaks):
        message = f"{check} not judged of {place}: the test did not run to its end on each of them"
        return (CheckResult(check, "not judged", message, enforced=False),)
    unsure = [one for one in peaks if one.verdict == "inconclusive" or one.measured is None or one.limit is None]
    limits = {one.limit.bytes: one.rank for one in peaks if one.limit is not None}
    if missing or unsure or len(limits) > 1:
        why = (
            f"rank {missing[0]} has no peak"
            if missing
            else "its ranks have different limits: "
            + ", ".join(f"{format_size(bytes_)} on rank {rank}" for bytes_, rank in limits.items())
        )
        if unsure:
            why = f"of rank {unsure[0].rank} it is not known"
        message = f"{check} INCONCLUSIVE of {place}: {why}"
        advice = "name the model whose sizes are meant (model=), or write a size" if len(limits) > 1 else ""
        return (CheckResult(check, "inconclusive", message, advice=advice, enforced=not report),)
    first = peaks[0]
    assert first.limit is not None
    levels = [one.measured or 0 for one in peaks]
    reached = sum(levels) if summed else max(levels)
    verdict: Verdict = "pass" if reached <= first.limit.bytes else "fail"
    details = tuple(f"rank {one.rank}: {format_size(one.measured or 0)} on {one.device}" for one in peaks)
    return (
        CheckResult(
            check,
            verdict,
            peak_message(
                verdict,
                check=check,
                measured=reached,
                limit=first.limit.bytes,
                kind=first.kind,
                device=place,
                how=first.how,
            ),
            device=place,
            kind=first.kind,
            how=first.how,
            measured=reached,
            limit=first.limit,
            details=details,
            advice=""
            if verdict == "pass"
            else "see which rank holds more than its share, and what was alive there at its peak",
            enforced=not report,
        ),
    )
