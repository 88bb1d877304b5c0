"""Verdicts on warm-ups from what was asked for and what there was, and peaks with and without them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_memleak.budget.expression import parse
from pytest_memleak.budget.term import Term
from pytest_memleak.checks.peak import judge_peak
from pytest_memleak.checks.warmup import judge_warmup
from pytest_memleak.meters.reading import Highest, Reading
from pytest_memleak.plan import Cap, PeakBudget, Warmed
from pytest_memleak.records.record import CheckResult
from pytest_memleak.room import Room, of_allocator
from pytest_memleak.upstream.warmup import Ask, Load, Warmup

GIB = 1024**3
REFUSED = "CUDA out of memory. Tried to allocate 7.00 GiB."


def room(free: float = 24, cap: float | None = None, allocated: float = 0) -> Room:
    return Room(24 * GIB, None if cap is None else int(cap * GIB), int(allocated * GIB), int(free * GIB))


def ask(asked: float, there: Room | None, device: str = "cuda:0", failed: str = "") -> Ask:
    return Ask(device, int(asked * GIB), there, failed)


def load(*asks: Ask, called: bool = True, reached: bool = True) -> Load:
    rooms = {one.device: one.room for one in asks} or {"cuda:0": room()}
    warmups = [Warmup(rooms, "caching_allocator_warmup(model, map)", list(asks))] if called else []
    return Load("test_it.py:7", reached, warmups)


def judge(expected: str, *loads: Load, doubts: tuple[str, ...] = (), blind: str = "") -> list[CheckResult]:
    promise = Warmed(expected, "test_it.py:3 @allocator_warmup")
    return judge_warmup(promise, loads, how="fed", doubts=doubts, blind=blind)


def verdicts(expected: str, *loads: Load) -> list[str]:
    return [result.verdict for result in judge(expected, *loads)]


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (room(free=6), "warm-up asked 7 GiB > 6 GiB free of cuda:0 (fed)"),
        (room(cap=6), "warm-up asked 7 GiB > 6 GiB left under the cap of cuda:0 (fed)"),
        (room(cap=16, allocated=12), "warm-up asked 7 GiB > 4 GiB left under the cap of cuda:0 (fed)"),
        (room(free=3, cap=6), "warm-up asked 7 GiB > 3 GiB free of cuda:0 (fed)"),
    ],
)
def test_more_than_there_is(there: Room, words: str) -> None:
    (result,) = judge("fits", load(ask(7, there)))
    assert result.message == f"allocator_warmup FAILED: {words}"
    assert (result.measured, result.limit and result.limit.bytes) == (7 * GIB, there.bytes)
    assert "memleak_fix" in result.advice
    assert "warmup_guard" in result.advice


def test_to_the_byte() -> None:
    exactly = Ask("cuda:0", 6 * GIB, room(free=6))
    assert verdicts("fits", load(exactly)) == ["pass"]
    over = Ask("cuda:0", 6 * GIB + 1, room(free=6))
    (result,) = judge("fits", load(over))
    assert "6.000 GiB > 6 GiB free" in result.message


def test_what_was_refused_did_not_fit_whatever_the_figures_say() -> None:
    (result,) = judge("fits", load(ask(7, room(), failed=REFUSED)))
    assert result.verdict == "fail"
    assert "7 GiB ≤ 24 GiB free of cuda:0, and was refused" in result.message
    assert any(REFUSED in line for line in result.details)
    assert verdicts("ran", load(ask(7, room(), failed=REFUSED))) == ["fail"]


@pytest.mark.parametrize("expected", ["fits", "skipped", "ran"])
def test_less_than_nothing_is_wrong_whatever_was_promised(expected: str) -> None:
    negative = ask(-0.2, room(free=1), failed="Trying to create tensor with negative dimension")
    (result,) = judge(expected, load(negative))
    assert result.verdict == "fail"
    assert "-204.8 MiB, less than nothing" in result.message


def test_skipped_and_ran_are_about_whether_anything_was_asked() -> None:
    asked, nothing = load(ask(7, room())), load(ask(0, room()))
    assert [verdicts(one, asked) for one in ("skipped", "ran")] == [["fail"], ["pass"]]
    for quiet in (nothing, load(), load(called=False)):
        assert [verdicts(one, quiet) for one in ("skipped", "fits", "ran")] == [["pass"], ["pass"], ["fail"]]
    assert verdicts("skipped", load(called=False), asked) == ["fail"]


def test_the_worst_of_several_requests_counts_and_each_device_by_itself() -> None:
    loads = load(ask(1, room(free=2)), ask(7, room(free=9), "cuda:1")), load(ask(3, room(free=2)))
    results = {result.device: result for result in judge("fits", *loads)}
    assert {device: result.verdict for device, result in results.items()} == {"cuda:0": "fail", "cuda:1": "pass"}
    assert results["cuda:0"].measured == 3 * GIB


def test_no_load_says_nothing() -> None:
    assert "no load of transformers was seen" in judge("skipped")[0].message
    begun = judge("skipped", load(called=False, reached=False))
    assert "did not come to its weights" in begun[0].message
    (elsewhere,) = judge_warmup(Warmed("fits", "here"), [], how="fed", elsewhere=2)
    assert "2 loads of a wider fixture" in elsewhere.message
    assert {one.verdict for one in (*judge("fits"), *begun, elsewhere)} == {"inconclusive"}


def test_what_could_not_be_seen_is_no_pass_and_no_excuse() -> None:
    child = ("pid 7 imported torch",)
    assert judge("fits", load(ask(1, room())), doubts=child)[0].verdict == "inconclusive"
    assert judge("fits", load(ask(99, room())), doubts=child)[0].verdict == "fail"
    assert judge("fits", load(ask(1, room())), blind="a CPU")[0].verdict == "inconclusive"
    assert verdicts("fits", load(ask(1, None))) == ["inconclusive"]
    assert verdicts("ran", load(ask(1, None))) == ["pass"]


FACTS: dict[str, Any] = {"free": 20 * GIB, "total": 24 * GIB, "allocated": GIB, "reserved": 3 * GIB}


def test_what_the_allocator_holds_unused_is_free() -> None:
    found = of_allocator(limit=None, **FACTS)
    assert (found.free, found.under_cap, found.bytes) == (22 * GIB, None, 22 * GIB)


def test_caps_that_nobody_is_told_of() -> None:
    """The card stays as big as it is."""
    expected = Room(24 * GIB, 16 * GIB, GIB, 22 * GIB)
    assert of_allocator(limit=16 * GIB, cap=Cap(16 * GIB, "here", told=False), **FACTS) == expected
    assert of_allocator(limit=16 * GIB, **FACTS) == expected  # the program has set it itself
    assert expected.bytes == 15 * GIB


def test_a_card_that_is_occupied_by_somebody_else() -> None:
    """9 GiB may be reserved, 3 of them are: 6 are free, and 2 that are held unused."""
    untold = of_allocator(limit=9 * GIB, cap=Cap(16 * GIB, "here", told=False, free=6 * GIB), **FACTS)
    assert untold == Room(24 * GIB, 16 * GIB, GIB, 8 * GIB)
    read = FACTS | {"total": 16 * GIB, "free": 6 * GIB}
    told = of_allocator(limit=None, cap=Cap(16 * GIB, "here", free=6 * GIB), **read)
    assert told == Room(16 * GIB, 16 * GIB, GIB, 8 * GIB)
    assert told.bytes == untold.bytes == 8 * GIB


def test_the_program_may_take_less_of_its_cap() -> None:
    assert of_allocator(limit=4 * GIB, cap=Cap(16 * GIB, "here"), **FACTS | {"total": 16 * GIB}).bytes == 3 * GIB


def reading() -> Reading:
    zero = {"allocated": 0}
    apart = Highest({"allocated": 3 * GIB}, zero, {})
    return Reading("cuda:0", "fed", zero, {"allocated": 7 * GIB}, zero, zero, unwarmed=apart)


def no_terms(name: str) -> Term:
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("limit", "warmup", "verdict", "measured", "beside"),
    [
        ("5GiB", True, "fail", 7, "without the warm-up: 3 GiB"),
        ("5GiB", False, "pass", 3, "with the warm-up: 7 GiB"),
        ("2GiB", False, "fail", 3, "with the warm-up: 7 GiB"),
    ],
)
def test_a_peak_with_and_without_the_warm_up(
    limit: str, warmup: bool, verdict: str, measured: int, beside: str
) -> None:
    (result,) = judge_peak(PeakBudget(parse(limit), "here", warmup=warmup), [reading()], no_terms)
    assert (result.verdict, result.measured) == (verdict, measured * GIB)
    assert any(line.endswith(beside) for line in result.details)
