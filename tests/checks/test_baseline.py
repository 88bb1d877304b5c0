"""`baseline`: readings and a recorded peak that are fed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.budget.tolerance import parse_tolerance
from pytest_memleak.checks.baseline import OwnPeak, is_known, judge_baseline, own_peaks, unless_rounded
from pytest_memleak.meters.reading import PREDICTED, Highest, Reading
from pytest_memleak.records.baselines.terms import Terms

TERMS = Terms(Path("b.txt"), "b.txt", "ini", tolerance=parse_tolerance("10"))


def own(peak: int, **more: Any) -> OwnPeak:
    return OwnPeak("cuda:0", PREDICTED, peak, **more)


def reading(peak: int, base: int = 0, device: str = "cuda:0", **more: Any) -> Reading:
    levels = {"allocated": peak}
    return Reading(device, PREDICTED, {"allocated": base}, levels, {"allocated": base}, levels, **more)


@pytest.mark.parametrize(("peak", "verdict"), [(0, "pass"), (100, "pass"), (110, "pass"), (111, "fail")])
def test_a_peak_fails_where_the_tolerance_ends(peak: int, verdict: str) -> None:
    (result,) = judge_baseline([own(peak)], {"cuda:0": 100}, TERMS, "simulated")
    assert result.verdict == verdict
    assert (result.measured, result.recorded) == (peak, 100)
    assert result.limit is not None
    assert result.limit.bytes == 110
    assert bool(result.advice) == (verdict == "fail")


def test_a_device_that_is_not_named_held_nothing() -> None:
    first, second = judge_baseline(
        [own(0), OwnPeak("cuda:1", PREDICTED, 11)], {"cuda:0": 100}, TERMS, "simulated"
    )  # fmt: skip
    assert (first.verdict, second.verdict, second.recorded) == ("pass", "fail", 0)


def test_without_an_entry_nothing_is_judged() -> None:
    (result,) = judge_baseline([own(5), OwnPeak("cuda:1", PREDICTED, 0)], None, TERMS, "simulated")
    assert (result.verdict, result.enforced, result.recorded, result.limit) == ("pass", False, None, None)
    assert judge_baseline([own(0)], None, TERMS, "simulated") == []


def test_doubt_makes_a_pass_inconclusive_and_leaves_a_failure() -> None:
    for doubts, blind in ((["a child"], None), ([], "a thread escaped")):
        (low,) = judge_baseline([own(100, blind=blind)], {"cuda:0": 100}, TERMS, "simulated", doubts)
        (high,) = judge_baseline([own(200, blind=blind)], {"cuda:0": 100}, TERMS, "simulated", doubts)
        (swayed,) = judge_baseline([own(200, blind=blind, swayed=True)], {"cuda:0": 100}, TERMS, "simulated", doubts)
        assert (low.verdict, high.verdict, swayed.verdict) == ("inconclusive", "fail", "inconclusive")
        assert not is_known([own(1, blind=blind)], doubts)
    assert is_known([own(1)], [])


def test_what_is_to_be_raised_is_no_failure_and_doubt_raises_nothing() -> None:
    raising = Terms(Path("b.txt"), "b.txt", "ini", update={"raise"}, tolerance=TERMS.tolerance)
    (result,) = judge_baseline([own(200)], {"cuda:0": 100}, raising, "simulated")
    assert result.verdict == "pass"
    assert result.message.startswith("baseline to be raised: peak 200 B > recorded 100 B: +100 B (+100.0 %)")
    (result,) = judge_baseline([own(200)], {"cuda:0": 100}, raising, "simulated", ["a child"])
    assert result.verdict == "fail"


def test_each_kind_of_card_has_its_own_tolerance() -> None:
    plain = Terms(Path("b.txt"), "b.txt", "ini")
    verdicts = {
        backend: judge_baseline([own(1_000_001)], {"cuda:0": 1_000_000}, plain, backend)[0].verdict
        for backend in ("simulated", "real", "cpu")
    }
    assert verdicts == {"simulated": "fail", "real": "pass", "cpu": "pass"}


def test_what_others_hold_is_not_the_tests_and_what_its_fixtures_hold_is() -> None:
    (found,) = own_peaks([[reading(150, base=100)]], ["cuda:0"], {})
    assert (found.bytes, found.foreign) == (50, 100)
    (found,) = own_peaks([[reading(150, base=100)]], ["cuda:0"], {"cuda:0": 30})
    assert (found.bytes, found.foreign) == (80, 70)
    (found,) = own_peaks([[reading(20, base=100)]], ["cuda:0"], {"cuda:0": 30})
    assert (found.bytes, found.foreign) == (0, 70)  # it gave back what others held


def test_of_several_runs_the_highest_counts_on_each_device_of_the_card() -> None:
    runs = [
        [reading(5, device="cuda:0"), reading(9, device="cuda:1"), reading(99, device="cpu")],
        [reading(7, device="cuda:0"), reading(8, device="cuda:1"), reading(99, device="cpu")],
    ]
    found = own_peaks(runs, ["cuda:0", "cuda:1"], {})
    assert {one.device: one.bytes for one in found} == {"cuda:0": 7, "cuda:1": 9}


def test_a_warm_up_is_not_counted() -> None:
    """What it asks for goes by what is free, which others may have taken."""
    rest = Highest({"allocated": 40}, {"allocated": 10}, {})
    (found,) = own_peaks([[reading(900, base=10, unwarmed=rest)]], ["cuda:0"], {})
    assert found.bytes == 30


def test_what_may_be_the_rounding_of_blocks_beside_what_others_hold_is_no_change() -> None:
    def rounded(base: int, brought: int = 0) -> OwnPeak:
        levels, start = {"allocated": base + 170, "requested": base + 165}, {"allocated": base, "requested": base}
        whole = Reading("cuda:0", PREDICTED, start, levels, start, levels)
        (found,) = own_peaks([[whole]], ["cuda:0"], {"cuda:0": brought})
        return found

    assert (rounded(0).rounding, rounded(30, brought=30).rounding, rounded(30).rounding) == (0, 0, 5)
    for recorded, wanted in ((155, 155), (154, 170), (165, 170), (0, 170)):
        (found,) = unless_rounded([rounded(30)], {"cuda:0": recorded}, TERMS, "simulated")
        assert found.bytes == wanted, recorded
    (found,) = unless_rounded([rounded(0)], {"cuda:0": 155}, TERMS, "simulated")
    assert found.bytes == 170


@pytest.mark.parametrize(
    ("end", "set_up", "left"),
    [
        (170, 30, 140),  # 30 were there before
        (170, 100, 70),  # a fixture of the test's own holds 70, or did for a while
        (30, 30, 0),
        (10, 30, 0),
    ],
)
def test_what_the_body_left_is_over_what_its_fixtures_had_set_up(end: int, set_up: int, left: int) -> None:
    levels = {"allocated": 230}, {"allocated": 30}, {"allocated": end}
    whole = Reading("cuda:0", PREDICTED, levels[1], *levels, phases={"setup": {"allocated": set_up}})
    (own,) = own_peaks([[whole]], ["cuda:0"], {})
    assert own.left == left


@pytest.mark.parametrize(("left", "cache"), [(0, False), (49, False), (50, True), (100, True)])
def test_what_is_left_is_asked_to_be_a_cache_where_it_is_most_of_the_excess(left: int, cache: bool) -> None:
    (result,) = judge_baseline([own(200, left=left)], {"cuda:0": 100}, TERMS, "simulated")
    assert ("is it a cache" in result.advice) == cache
    assert "--memleak-update=raise" in result.advice
