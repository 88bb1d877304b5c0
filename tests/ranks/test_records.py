"""Records of all ranks become one; what is promised of all together is judged there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pytest_memleak.budget.expression import parse
from pytest_memleak.plan import PeakBudget
from pytest_memleak.ranks.records import Reckoned, reckon
from pytest_memleak.records.record import Block, CheckResult, Limit, TestRecord

MIB = 1 << 20
EMPTY = TestRecord("test_it.py::test", "test_it.py", 3)


def record(measured: int | None = None, **fields: Any) -> TestRecord:
    limit = Limit("11MiB", 11 * MIB, "test_it.py:2")
    peak = CheckResult("max_peak", "not judged", "max_peak: read", "cuda:0", "allocated", "measured", measured)
    results = (replace(peak, limit=limit, enforced=False),)
    return TestRecord("test_it.py::test", "test_it.py", 3, results=results, **fields)


def together(
    *levels: int | None, rank: str = "sum", deaths: dict[int, str] | None = None, report: bool = False
) -> Reckoned:
    records = {rank: record(level) for rank, level in enumerate(levels)}
    for dead in deaths or {}:
        records.pop(dead, None)
    budget = PeakBudget(parse("11MiB"), "test_it.py:2", rank=rank)
    return reckon(EMPTY, records, len(levels), {"max_peak": budget}, deaths or {}, report)


@pytest.mark.parametrize(
    ("rank", "levels", "verdict", "measured"),
    [
        ("sum", (5, 6), "pass", 11),
        ("sum", (5, 7), "fail", 12),
        ("max", (5, 11), "pass", 11),
        ("max", (12, 1), "fail", 12),
    ],
)
def test_a_promise_of_all_ranks(rank: str, levels: tuple[int, ...], verdict: str, measured: int) -> None:
    reckoned = together(*(level * MIB for level in levels), rank=rank)
    (result,) = reckoned.of_all
    assert (result.verdict, result.measured) == (verdict, measured * MIB)
    assert result.enforced
    assert "rank 1" in "\n".join(result.details)
    assert reckoned.record.verdict == verdict


def test_report_mode_fails_nobody() -> None:
    reckoned = together(9 * MIB, 9 * MIB, report=True)
    assert reckoned.of_all[0].verdict == "fail"
    assert reckoned.record.verdict is None


def test_a_part_that_is_not_known_makes_the_whole_unknown() -> None:
    unsure = replace(record(1).results[0], verdict="inconclusive")
    records = {0: record(1), 1: replace(record(1), results=(unsure,))}
    reckoned = reckon(EMPTY, records, 2, {"max_peak": PeakBudget(parse("1MiB"), "x", rank="sum")}, {})
    assert reckoned.of_all[0].verdict == "inconclusive"
    assert reckoned.undecided
    assert "rank 1" in reckoned.of_all[0].message


@pytest.mark.parametrize(("levels", "deaths"), [((1, None), {}), ((1, 1), {1: "rank 1 of 2 was killed"})])
def test_a_body_that_did_not_end_is_not_judged(levels: tuple[int | None, ...], deaths: dict[int, str]) -> None:
    """Its own failure, or the skip, is what is told."""
    reckoned = together(*levels, deaths=deaths)
    assert (reckoned.of_all[0].verdict, reckoned.of_all[0].enforced) == ("not judged", False)
    assert not reckoned.undecided


def test_different_limits_are_no_limit_of_all() -> None:
    other = replace(record(1).results[0], limit=Limit("fp16_size", 5, "test_it.py:2"))
    records = {0: record(1), 1: replace(record(1), results=(other,))}
    reckoned = reckon(EMPTY, records, 2, {"max_peak": PeakBudget(parse("1MiB"), "x", rank="sum")}, {})
    assert reckoned.of_all[0].verdict == "inconclusive"
    assert "5 B on rank 1" in reckoned.of_all[0].message


def test_each_ranks_results_are_told_apart() -> None:
    block = Block("load", "cuda:0", "allocated", "measured", 3, 1)
    records = {
        0: record(1, notes=("both", "one"), duration=1.0),
        1: record(2, notes=("both",), blocks=(block,), duration=3.0),
    }
    whole = reckon(EMPTY, records, 2, {}, {}).record
    assert [(one.rank, one.measured) for one in whole.results] == [(0, 1), (1, 2)]
    assert whole.results[1].message == "rank 1: max_peak: read"
    assert (whole.ranks, whole.duration, whole.blocks[0].rank) == (2, 3.0, 1)
    assert whole.notes == ("both", "one (rank 0)")
    assert TestRecord.from_json(whole.as_json()) == whole


def test_a_death_is_a_failure_of_the_record() -> None:
    whole = reckon(EMPTY, {}, 2, {}, {1: "rank 1 of 2 was killed by SIGKILL\n  | last words"}).record
    assert whole.verdict == "fail"
    assert whole.results[0].message == "rank 1 of 2 was killed by SIGKILL"
    assert whole.results[0].details == ("  | last words",)
