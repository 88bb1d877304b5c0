from __future__ import annotations

import pytest

from pytest_memleak.records.baselines import Baseline, Entry, Key
from pytest_memleak.records.baselines.unmatched import Setting, unmatched


def entry(test: str, torch: str = "2.13") -> Entry:
    return Entry(Key(test, "simulated", "H200", torch), {}).with_peaks({"cuda:0": 1})


OLD = Baseline([entry("a", "2.12"), entry("b", "2.12")])


@pytest.mark.parametrize("whole", [True, False])
def test_settings_are_told_once_each(whole: bool) -> None:
    found = unmatched(OLD, [entry("a"), entry("b")], whole=whole)
    assert found is not None
    assert found.recorded == (Setting("simulated", "H200", "2.12"),)
    assert found.measured == (Setting("simulated", "H200", "2.13"),)
    assert not found.by_name


def test_of_a_few_tests_one_must_be_known() -> None:
    assert unmatched(OLD, [entry("new")], whole=False) is None
    assert unmatched(OLD, [entry("new")], whole=True) is not None


def test_names_are_at_fault_where_the_setting_is_there() -> None:
    found = unmatched(OLD, [entry("c", "2.12"), entry("c")], whole=True)
    assert found is not None
    assert found.by_name


@pytest.mark.parametrize(("baseline", "missing"), [(Baseline(), [entry("a")]), (OLD, [])])
def test_without_entries_or_tests_there_is_nothing_to_match(baseline: Baseline, missing: list[Entry]) -> None:
    assert unmatched(baseline, missing, whole=True) is None
