"""From the readings of a test that has ended to verdicts: gathers what casts doubt on them and asks the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.budget.term import Term
from pytest_memleak.checks.baseline import CHECK as BASELINE
from pytest_memleak.checks.leak import judge_host_leak, judge_leak
from pytest_memleak.checks.peak import TermOf, inconclusive, judge_host_peak, judge_peak
from pytest_memleak.checks.warmup import judge_warmup, was_at_fault
from pytest_memleak.errors import NotSimulated
from pytest_memleak.hooks import known_caches
from pytest_memleak.hooks.owners import owners_of
from pytest_memleak.meters import shared
from pytest_memleak.meters.host import settles_by
from pytest_memleak.meters.reading import COMMITTED, PREDICTED, Reading
from pytest_memleak.plan import Budget, Cap, HostPeakBudget, Warmed
from pytest_memleak.records.record import CheckResult
from pytest_memleak.wording import plural, size

if TYPE_CHECKING:
    from pytest_memleak.hooks.baseline_of_test import BaselineOfTest
    from pytest_memleak.hooks.running import RunningTest

_CHECKS = {
    "peak": "max_peak",
    "host_peak": "max_host_peak",
    "leak": "max_leak",
    "warmup": "allocator_warmup",
    "no_nan": "no_nan",
    "same": "same_on_all_ranks",
}


def judge_body(test: RunningTest) -> None:
    """Peaks, warm-ups, and refusals that nobody expected: known when the body has returned."""
    plan, bodies, doubts = test.plan, test.measurement.bodies, _doubts(test)
    results: list[CheckResult] = []
    if plan.peak is not None or plan.report:
        kind = (plan.peak.of if plan.peak else None) or "allocated"
        readings = _highest(bodies, kind, test.info.devices, plan.peak is None or plan.peak.warmup)
        results += judge_peak(plan.peak, readings, _terms(test, plan.peak), doubts)
    if plan.host_peak is not None:
        results.append(_judge_host(test, plan.host_peak, doubts))
    if plan.cap is not None:
        results += _judge_cap(test)
    _add(test, test.explaining.added_to(results))
    if test.baseline is not None:
        _add(test, _against_baseline(test, test.baseline, doubts))
    if plan.warmup is not None:  # which explains itself
        _add(test, _judge_warmup(test, plan.warmup))
    _add(test, test.values.judge(doubts))
    if not any(result.verdict == "inconclusive" for result in test.results) and (doubt := test.card.doubt()):
        _add(test, [inconclusive("simulation", doubt)])


def _against_baseline(test: RunningTest, baseline: BaselineOfTest, doubts: Sequence[str]) -> list[CheckResult]:
    results = baseline.judge(test.measurement.bodies, test.info.devices, doubts, test.measurement.workspaces.made)
    if any(result.explanation for result in test.results):
        return results  # the same peak, and it has been explained
    return test.explaining.added_to(results)


def made_up(test: RunningTest, error: BaseException) -> bool:
    """Whether the body failed on a card that had no answer for it: then its failure says nothing. In report mode it
    stands as it is, and that is told beside it."""
    doubt = test.card.doubt(error)
    if doubt is None:
        return False
    told = isinstance(error, NotSimulated)
    failed = "" if told else f"; then it raised {type(error).__name__}: {_first_line(error)}"
    advice = "run the test on a real card, or on the CPU (--gpu-backend=cpu)"
    _add(test, [replace(inconclusive("simulation", f"{doubt}{failed}"), advice=advice)])
    return not test.plan.report


def warmup_is_known(test: RunningTest, out_of_memory: bool) -> bool:
    """Of a body that failed: whether what was promised of its warm-ups can be told all the same."""
    return test.plan.warmup is not None and (out_of_memory or was_at_fault(test.measurement.warmups.loads))


def judge_warmup_now(test: RunningTest) -> None:
    assert test.plan.warmup is not None
    _add(test, _judge_warmup(test, test.plan.warmup))


def _judge_warmup(test: RunningTest, promise: Warmed) -> list[CheckResult]:
    spy = test.measurement.warmups
    on_cpu = "the test runs on the CPU, which is never warmed up: give it a card (gpu_cap, --gpu-backend=simulated)"
    return judge_warmup(
        promise,
        spy.loads,
        how=PREDICTED if test.card.backend == "simulated" else "measured",
        blind=on_cpu if test.card.backend == "cpu" else spy.missing,
        elsewhere=spy.elsewhere,
        doubts=_doubts(test),
    )


def _judge_host(test: RunningTest, budget: HostPeakBudget, doubts: Sequence[str]) -> CheckResult:
    bodies, terms = test.measurement.bodies, _terms(test, budget)
    if test.card.backend == "simulated":
        (reading,) = _highest(bodies, COMMITTED, ("cpu",))
        reading = replace(reading, device="host", how=PREDICTED, blind=reading.blind or test.card.doubt())
        beside = "predicted from the tensors of the CPU: what else the process holds is the simulation's too"
        return judge_host_peak(budget, reading, terms, doubts, beside)
    (reading,) = _highest(bodies, COMMITTED, ("host",))
    high_water, meaning = shared.host_memory().high_water()
    beside = f"{meaning}: {format_size(high_water)}" if high_water is not None else meaning
    return judge_host_peak(budget, reading, terms, doubts, beside)


def judge_end(test: RunningTest) -> None:
    """Leaks, and refusals in the fixtures' finalizers: known when those are torn down."""
    if test.plan.cap is not None and not any(result.check == "gpu_cap" for result in test.results):
        _add(test, _judge_cap(test))
    _judge_leak(test)


def _judge_leak(test: RunningTest) -> None:
    plan, measurement, doubts = test.plan, test.measurement, _doubts(test)
    if plan.leak is not None and plan.leak.of == "host":
        _add(test, [judge_host_leak(plan.leak, measurement.settled, settles_by(), _terms(test, plan.leak), doubts)])
    elif plan.leak is not None or plan.report:
        terms, owners = _terms(test, plan.leak), owners_of(test)
        _add(test, judge_leak(plan.leak, measurement.ends, terms, doubts, owners, known_caches.advice))


def not_judged(test: RunningTest) -> None:
    """The body failed or was skipped: its budgets say nothing."""
    asked = [check for part, check in _CHECKS.items() if getattr(test.plan, part) is not None]
    if test.baseline is not None and test.baseline.recorded is not None:
        asked.append(BASELINE)
    message = "not judged: the test did not run to its end"
    done = {result.check for result in test.results}
    _add(test, [CheckResult(check, "not judged", f"{check} {message}") for check in asked if check not in done])


def out_of_memory(test: RunningTest, error: BaseException) -> None:
    """The test died of the card's size: that is a verdict on its peak, and worth an explanation."""
    cap = test.plan.cap
    size = format_size(cap.bytes if cap else test.info.total)
    card = f"{'the cap' if cap else 'the card'} of {size}{f' ({cap.source})' if cap else ''}"
    readings = _card_readings(test)
    reached = max((reading.peak["allocated"] for reading in readings), default=0)
    how = readings[0].how if readings else ""
    predicted = f" ({how})" if how == PREDICTED else ""
    check = "max_peak" if test.plan.peak else "gpu_cap"
    message = (
        f"{check} FAILED: out of memory under {card}: {format_size(reached)} were allocated{predicted}, and more was "
        "asked for"
    )
    advice = "see in the traceback what was asked for; give the test a larger card, or release memory before"
    result = CheckResult(
        check,
        "fail",
        message,
        kind="allocated",
        how=how,
        measured=reached,
        details=(_first_line(error),),
        advice=advice,
    )
    _add(test, test.explaining.added_to([result]))


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is an out-of-memory, or was raised while one was handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _judge_cap(test: RunningTest) -> list[CheckResult]:
    cap = test.plan.cap
    assert cap is not None
    if test.refused > 0:
        why = (
            f"{plural(test.refused, 'allocation was', 'allocations were')} refused under the cap of "
            f"{format_size(cap.bytes)}, and the test went on: how much it needs is not known"
        )
        advice = "if it is meant to run out of memory, say so with pytest.raises(torch.OutOfMemoryError)"
        return [CheckResult("gpu_cap", "inconclusive", f"gpu_cap INCONCLUSIVE: {why}", advice=advice)]
    if test.plan.cap_is_asked and (doubts := _doubts(test)):
        return [inconclusive("gpu_cap", f"{'; '.join(doubts)}: the cap did not bind it")]
    if test.info.enforcement.startswith("enforced"):
        # The CPU as card has no reserve, and nobody can lift its cap.
        if lifted := [one for one in _card_readings(test) if one.peak.get("reserved", 0) > cap.bytes]:
            return [_lifted(cap, reading) for reading in lifted]
        return [
            inconclusive(
                "gpu_cap",
                f"{size(reading.possible_peak('reserved') - cap.bytes)} over the cap may have been reserved on "
                f"{reading.device}: {reading.unseen_is}",
            )
            for reading in _card_readings(test)
            if reading.how == PREDICTED and reading.possible_peak("reserved") > cap.bytes >= reading.peak["reserved"]
        ]
    # Nothing refused to go over it, so the reading has to.
    over = [reading for reading in _card_readings(test) if reading.peak["allocated"] > _room(cap, reading)]
    return [
        CheckResult(
            "gpu_cap",
            "fail",
            f"gpu_cap FAILED: peak {format_size(reading.peak['allocated'])} > cap {format_size(_room(cap, reading))} "
            f"(allocated on {reading.device}, {reading.how}; judged at the end)",
            device=reading.device,
            kind="allocated",
            how=reading.how,
            measured=reading.peak["allocated"],
        )
        for reading in over
    ]


def _lifted(cap: Cap, reading: Reading) -> CheckResult:
    reserved = reading.peak["reserved"]
    return CheckResult(
        "gpu_cap",
        "fail",
        f"gpu_cap FAILED: {size(reserved)} > cap {size(cap.bytes)} (reserved on {reading.device}, {reading.how})",
        device=reading.device,
        kind="reserved",
        how=reading.how,
        measured=reserved,
        details=("the cap had no longer any effect: the program has set a larger one itself",),
        advice="leave out set_per_process_memory_fraction in this test, or give it a card of that size",
    )


def _room(cap: Cap, reading: Reading) -> int:
    """What the test may reach: less than the cap where somebody else occupies a part of the card."""
    return cap.bytes if cap.free is None else min(cap.bytes, reading.base["allocated"] + cap.free)


def _doubts(test: RunningTest) -> list[str]:
    """What the meters could not see, in words."""
    return [f"{child} and was not measured" for child in test.measurement.children]


def _terms(test: RunningTest, budget: Budget | None) -> TermOf:
    def term_of(name: str) -> Term:
        assert budget is not None
        return test.names.term(budget, name)

    return term_of


def _card_readings(test: RunningTest) -> list[Reading]:
    return [
        reading
        for run in test.measurement.bodies
        for reading in run
        if reading.device in test.info.devices and "allocated" in reading.peak
    ]


def _highest(
    runs: Sequence[Sequence[Reading]], kind: str, devices: Sequence[str], with_warmup: bool = True
) -> list[Reading]:
    """Of each device the run that went highest; what does not tell this kind stays, for the error that says so."""
    highest: dict[tuple[str, tuple[str, ...]], Reading] = {}
    for reading in (reading for run in runs for reading in run if reading.device in devices):
        key = (reading.device, tuple(reading.peak))
        if key not in highest or _reached(reading, kind, with_warmup) > _reached(highest[key], kind, with_warmup):
            highest[key] = reading
    return list(highest.values())


def _reached(whole: Reading, kind: str, with_warmup: bool) -> int:
    reading = whole if with_warmup else whole.without_warmup()
    return reading.possible_peak(kind) if kind in reading.peak else 0


def _add(test: RunningTest, results: Sequence[CheckResult]) -> None:
    test.results += [replace(result, enforced=result.enforced and not test.plan.report) for result in results]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
