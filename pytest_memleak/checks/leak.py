"""`max_leak`: what a test still holds after its fixtures are torn down, per run, and who holds it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise

from pytest_memleak.checks.peak import TermOf, evaluate, inconclusive
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.meters.reading import Reading
from pytest_memleak.plan import LeakBudget
from pytest_memleak.records.record import CheckResult, Limit, Verdict
from pytest_memleak.wording import leak_message, size

Owners = Callable[[Reading, int], tuple[str, ...]]
"""Names who holds a leak of so many bytes on the reading's device; asked only when a check fails."""
Advice = Callable[[Sequence[str]], str]
"""What to do about these owners in particular, or nothing."""


def judge_leak(
    budget: LeakBudget | None,
    ends: Sequence[Sequence[Reading]],
    term_of: TermOf,
    doubts: Sequence[str] = (),
    owners: Owners = lambda reading, grown: (),
    advice: Advice = lambda held: "",
) -> list[CheckResult]:
    """One result for each device that holds more than it may; else one for the device that grew most."""
    try:
        limit = evaluate(budget, term_of) if budget else None
        results = [
            _judge_device(budget, limit, runs, kind, doubts, owners, advice) for runs, kind in _by_device(ends, budget)
        ]
    except (Inconclusive, BadInput) as error:
        return [inconclusive("max_leak", str(error))]
    bad = [result for result in results if result.verdict != "pass"]
    return bad or [max(results, key=lambda result: result.measured or 0)]


def judge_host_leak(
    budget: LeakBudget, settled: Sequence[int], how: str, term_of: TermOf, doubts: Sequence[str] = ()
) -> CheckResult:
    """Committed memory moves in pages and arenas: only growth that most runs repeat is a leak."""
    try:
        limit = evaluate(budget, term_of)
    except (Inconclusive, BadInput) as error:
        return inconclusive("max_leak", str(error))
    growth = [after - before for before, after in pairwise(settled)][budget.warmups :]
    persistent = round(statistics.median(growth))
    verdict, why = _verdict(persistent, limit, doubts)
    return CheckResult(
        check="max_leak",
        verdict=verdict,
        message=leak_message(
            verdict,
            measured=persistent,
            limit=limit.bytes,
            kind="committed",
            device="host",
            how=how,
            per_run=True,
            why=why,
        ),
        device="host",
        kind="committed",
        how=how,
        measured=persistent,
        limit=limit,
        details=(_runs(growth), "judged on the median: growth that persists"),
        advice=_ADVICE if verdict == "fail" else "",
    )


_ADVICE = (
    "let go of it in the test or in a fixture's finalizer; what is built once and kept settles with "
    "max_leak(..., warmups=1)"
)


def _judge_device(
    budget: LeakBudget | None,
    limit: Limit | None,
    runs: Sequence[Reading],
    kind: str,
    doubts: Sequence[str],
    owners: Owners,
    advice: Advice,
) -> CheckResult:
    judged = runs[budget.warmups :] if budget else runs
    growth = [reading.grown(kind) for reading in judged]
    per_run = -(-sum(growth) // len(growth)) if sum(growth) > 0 else sum(growth) // len(growth)
    last = judged[-1]
    verdict, why = _verdict(per_run, limit, [*doubts, *filter(None, [last.blind])], last.swayed)
    held = owners(last, growth[-1]) if verdict == "fail" else ()
    return CheckResult(
        check="max_leak",
        verdict=verdict,
        message=leak_message(
            verdict,
            measured=per_run,
            limit=limit.bytes if limit else None,
            kind=kind,
            device=last.device,
            how=last.how,
            per_run=len(growth) > 1,
            why=why,
        ),
        device=last.device,
        kind=kind,
        how=last.how,
        measured=per_run,
        limit=limit,
        details=(*([_runs(growth)] if len(growth) > 1 else []), *held),
        advice=(advice(held) or _ADVICE) if verdict == "fail" else "",
    )


def _verdict(grown: int, limit: Limit | None, doubts: Sequence[str], swayed: bool = False) -> tuple[Verdict, str]:
    if limit is None:
        return "pass", "; ".join(doubts)
    if grown > limit.bytes and not swayed:
        return "fail", ""
    if doubts:
        return "inconclusive", "; ".join(doubts)
    return "pass", ""


def _by_device(ends: Sequence[Sequence[Reading]], budget: LeakBudget | None) -> list[tuple[list[Reading], str]]:
    """The runs of each device, and the kind to judge there. A kind that was asked for leaves out who cannot tell it."""
    wanted = budget.of if budget else None
    devices = [
        [readings[index] for readings in ends] for index, reading in enumerate(ends[0]) if reading.device != "host"
    ]
    fitting = [(runs, wanted or "allocated") for runs in devices if (wanted or "allocated") in runs[0].end]
    if not fitting:
        known = ", ".join(sorted({kind for runs in devices for kind in runs[0].end}))
        raise BadInput(f"of={wanted!r} cannot be read on this card: it tells {known}")
    return fitting


def _runs(growth: Sequence[int]) -> str:
    return "growth of each run: " + ", ".join(size(amount) for amount in growth)
