"""Verdicts from fed readings."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_memleak.budget.expression import parse
from pytest_memleak.budget.term import Term
from pytest_memleak.checks.leak import judge_host_leak, judge_leak
from pytest_memleak.checks.peak import judge_host_peak, judge_peak
from pytest_memleak.errors import Inconclusive
from pytest_memleak.meters.reading import Reading
from pytest_memleak.plan import HostPeakBudget, LeakBudget, PeakBudget

MIB = 1024**2


def reading(device: str = "cuda:0", base: int = 0, peak: int = 0, end: int = 0, **more: Any) -> Reading:
    kind = more.pop("kind", "allocated")
    return Reading(
        device, "fed", base={kind: base}, peak={kind: peak}, base_at_peak={kind: base}, end={kind: end}, **more
    )


def peak_budget(text: str, **more: Any) -> PeakBudget:
    return PeakBudget(parse(text), "fed", **more)


def leak_budget(text: str, **more: Any) -> LeakBudget:
    return LeakBudget(parse(text, zero=True), "fed", **more)


def no_terms(name: str) -> Term:
    raise Inconclusive(f"no model, so no {name}")


def verdicts(budget: PeakBudget, *readings: Reading, doubts: tuple[str, ...] = ()) -> list[str]:
    return [result.verdict for result in judge_peak(budget, readings, no_terms, doubts)]


def test_peak_at_the_limit_passes_and_one_byte_more_fails() -> None:
    assert verdicts(peak_budget("1MiB"), reading(peak=MIB)) == ["pass"]
    assert verdicts(peak_budget("1MiB"), reading(peak=MIB + 1)) == ["fail"]


def test_each_device_must_hold() -> None:
    assert verdicts(peak_budget("1MiB"), reading("cuda:0", peak=1), reading("cuda:1", peak=2 * MIB)) == ["pass", "fail"]


def test_devices_that_were_not_used_are_not_told() -> None:
    assert verdicts(peak_budget("1MiB"), reading("cuda:0"), reading("cuda:1", peak=1), reading("cuda:2")) == ["pass"]


@pytest.mark.parametrize(
    ("peak", "unseen", "verdict"), [(0, MIB, "pass"), (0, MIB + 1, "inconclusive"), (MIB + 1, 0, "fail")]
)
def test_memory_that_was_never_seen_allocated_bounds_the_peak(peak: int, unseen: int, verdict: str) -> None:
    assert verdicts(peak_budget("1MiB"), reading(peak=peak, unseen=unseen)) == [verdict]


def test_what_was_there_throughout_is_base_and_no_doubt() -> None:
    held = reading(peak=MIB, unseen=MIB, unseen_before=MIB)
    assert verdicts(peak_budget("2MiB"), held) == ["pass"]
    assert verdicts(peak_budget("2MiB"), reading(peak=MIB + 1, unseen=MIB, unseen_before=MIB)) == ["fail"]
    (result,) = judge_peak(peak_budget("1MiB"), [held], no_terms)
    assert (result.verdict, result.base, result.measured) == ("fail", MIB, 2 * MIB)


def test_what_was_there_before_and_went_may_or_may_not_have_been_there_at_the_peak() -> None:
    gone = reading(peak=MIB, unseen=0, unseen_before=MIB, unseen_peak=MIB)
    assert verdicts(peak_budget("1.5MiB"), gone) == ["inconclusive"]


def test_mapped_files_that_came_and_went_are_told_and_not_counted() -> None:
    (result,) = judge_peak(peak_budget("1MiB"), [reading(peak=1000, mapped_peak=8 * MIB)], no_terms)
    assert (result.verdict, result.measured, result.let_go_of) == ("pass", 1000, 8 * MIB)
    assert "8 MiB in mapped files came and went: not counted" in result.details


def test_doubt_makes_a_pass_inconclusive_but_not_a_fail() -> None:
    assert verdicts(peak_budget("1MiB"), reading(peak=1), doubts=("a child",)) == ["inconclusive"]
    assert verdicts(peak_budget("1MiB"), reading(peak=1, blind="it could not see")) == ["inconclusive"]
    assert verdicts(peak_budget("1MiB"), reading(peak=2 * MIB), doubts=("a child",)) == ["fail"]


def test_name_without_a_model_is_inconclusive() -> None:
    (result,) = judge_peak(peak_budget("fp16_size"), [reading(peak=1)], no_terms)
    assert result.verdict == "inconclusive"
    assert "no model" in result.message


def test_another_ranks_promise_is_not_judged_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (read,) = judge_peak(peak_budget("1MiB", rank=0), [reading(peak=2 * MIB)], no_terms)
    assert (read.measured, read.enforced, read.limit) == (2 * MIB, False, None)
    (part,) = judge_peak(peak_budget("1MiB", rank="sum"), [reading(peak=2 * MIB)], no_terms)
    assert (part.verdict, part.measured, part.enforced) == ("not judged", 2 * MIB, False)
    assert verdicts(peak_budget("1MiB", rank=1), reading(peak=2 * MIB)) == ["fail"]
    monkeypatch.delenv("RANK")
    assert verdicts(peak_budget("1MiB", rank=1), reading(peak=2 * MIB)) == ["inconclusive"]


def test_host_peak_is_judged_on_growth() -> None:
    budget = HostPeakBudget(parse("1MiB"), "fed")
    held = reading("host", base=50 * MIB, peak=51 * MIB, kind="committed")
    assert judge_host_peak(budget, held, no_terms).verdict == "pass"
    over = reading("host", base=50 * MIB, peak=52 * MIB, kind="committed")
    assert judge_host_peak(budget, over, no_terms).verdict == "fail"


def leaks(budget: LeakBudget, *growth: int) -> tuple[str, int | None]:
    ends = [[reading(base=100, end=100 + grown)] for grown in growth]
    (result,) = judge_leak(budget, ends, no_terms)
    return result.verdict, result.measured


def test_nothing_may_be_held_by_default() -> None:
    assert leaks(leak_budget("0"), 0) == ("pass", 0)
    assert leaks(leak_budget("0"), 1) == ("fail", 1)
    assert leaks(leak_budget("0"), -5) == ("pass", -5)


def test_warm_ups_are_not_counted_and_runs_are_averaged() -> None:
    assert leaks(leak_budget("0", repeat=2, warmups=1), 1000, 0, 0) == ("pass", 0)
    assert leaks(leak_budget("10", repeat=2, warmups=1), 0, 10, 10) == ("pass", 10)
    assert leaks(leak_budget("10", repeat=2, warmups=1), 0, 10, 11) == ("fail", 11)  # rounded up: 10.5 a run
    assert leaks(leak_budget("0", repeat=3, warmups=0), 0, 0, 1) == ("fail", 1)


def test_owners_are_asked_only_when_it_fails() -> None:
    asked: list[int] = []

    def owners(_: Reading, grown: int) -> tuple[str, ...]:
        asked.append(grown)
        return ("somebody",)

    judge_leak(leak_budget("0"), [[reading()]], no_terms, owners=owners)
    assert not asked
    (result,) = judge_leak(leak_budget("0"), [[reading(end=7)]], no_terms, owners=owners)
    assert asked == [7]
    assert "somebody" in result.details


def host_leak(*settled: int, warmups: int = 1) -> str:
    budget = leak_budget("1MiB", of="host", repeat=len(settled) - 1 - warmups, warmups=warmups)
    return judge_host_leak(budget, [level * MIB for level in settled], "fed", no_terms).verdict


def test_host_leak_is_growth_that_persists() -> None:
    assert host_leak(100, 150, 150, 150, 150) == "pass"  # the warm-up's
    assert host_leak(100, 150, 154, 158, 162) == "fail"
    assert host_leak(100, 150, 150, 190, 190) == "pass"  # an arena, once
