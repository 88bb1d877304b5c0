from __future__ import annotations

import pytest

from pytest_memleak.records.record import CheckResult, Limit, TestRecord, Verdict
from pytest_memleak.report.tighten import Tightening, tightenings

GIB = 1024**3


def record(
    nodeid: str,
    measured: int | None,
    limit: int,
    *,
    text: str = "12G",
    source: str = "memleak_max_peak in pytest.ini",
    check: str = "max_peak",
    verdict: Verdict = "pass",
) -> TestRecord:
    result = CheckResult(check, verdict, "…", measured=measured, limit=Limit(text, limit, source))
    return TestRecord(nodeid, "a.py", 1, results=(result,))


def only(records: list[TestRecord]) -> Tightening:
    (found,) = tightenings(records)
    return found


def test_a_limit_shared_by_tests_is_tightened_to_the_hungriest() -> None:
    found = only([record("a::1", GIB, 12 * GIB), record("a::2", 4 * GIB, 12 * GIB), record("a::3", 5, 12 * GIB)])
    assert (found.suggestion, found.measured, found.tests) == ("4.2GiB", 4 * GIB, 3)


@pytest.mark.parametrize("verdict", ["fail", "inconclusive", "not judged"])
def test_a_limit_is_left_alone_when_one_of_its_tests_did_not_pass(verdict: Verdict) -> None:
    assert tightenings([record("a::1", GIB, 12 * GIB), record("a::2", GIB, 12 * GIB, verdict=verdict)]) == []


def test_a_warm_up_that_asks_for_little_is_none_to_be_tightened() -> None:
    assert tightenings([record("a::1", 1, GIB, text="fits", check="allocator_warmup")]) == []


def test_a_limit_used_by_half_or_more_of_one_test_stays() -> None:
    assert tightenings([record("a::1", 1, 12 * GIB), record("a::2", 6 * GIB, 12 * GIB)]) == []


def test_limits_written_in_different_places_are_told_apart() -> None:
    found = tightenings(
        [record("a::1", GIB, 12 * GIB, source="a.py:1"), record("a::2", 6 * GIB, 12 * GIB, source="a.py:9")]
    )
    assert [one.source for one in found] == ["a.py:1"]


def test_an_expression_that_came_to_different_sizes_is_scaled() -> None:
    small = record("a::t[1b]", GIB // 5, 2 * GIB, text="fp16_size + 1G")
    large = record("a::t[7b]", 4 * GIB, 13 * GIB, text="fp16_size + 1G")
    found = only([small, large])
    assert found.suggestion == "0.33 * (fp16_size + 1G)"
    assert 0.33 * 13 * GIB >= 4 * GIB * 1.05


def test_a_leak_allowance_that_nothing_used_may_be_zero_but_a_peak_may_not() -> None:
    assert only([record("a::1", 0, GIB, check="max_leak")]).suggestion == "0"
    assert only([record("a::1", -5, GIB, check="max_leak")]).suggestion == "0"
    assert only([record("a::1", 0, GIB)]).suggestion == ""


def test_the_suggestion_has_five_percent_of_room() -> None:
    assert only([record("a::1", 100 * 1024**2, GIB)]).suggestion == "110MiB"
