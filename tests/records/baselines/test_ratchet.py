"""The ratchet alone, with entries that are fed to it."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_memleak.records.baselines import Baseline, Entry, Key
from pytest_memleak.records.baselines.ratchet import ALL, NEW, RAISE, TRIM, Findings, changes, compare


def entry(test: str, *, card: str = "H200", torch: str = "2.13", backend: str = "simulated", **peaks: int) -> Entry:
    return Entry(Key(test, backend, card, torch), {}).with_peaks(peaks or {"cuda0": 100})


def to_the_byte(backend: str, recorded: int) -> int:
    return recorded


def ten_more(backend: str, recorded: int) -> int:
    return recorded + 10


RECORDED = [entry("same"), entry("rose"), entry("fell"), entry("gone")]
MEASURED = [entry("same"), entry("rose", cuda0=150), entry("fell", cuda0=60), entry("new", cuda0=7)]


def found(measured: list[Entry] = MEASURED, **options: Any) -> Findings:
    return compare(Baseline(RECORDED), measured, to_the_byte, **options)


def peaks(baseline: Baseline) -> dict[str, int]:
    return {key.test: sum(one.peaks.values()) for key, one in baseline.entries.items()}


def test_each_entry_is_what_it_is() -> None:
    findings = found(whole=True)
    assert [one.key.test for one in findings.missing] == ["new"]
    assert [one.places for one in findings.higher] == [[("cuda0", 100, 150)]]
    assert [one.places for one in findings.lower] == [[("cuda0", 100, 60)]]
    assert [one.key.test for one in findings.unused] == ["gone"]


@pytest.mark.parametrize(
    ("updates", "wanted"),
    [
        ([], {"same": 100, "rose": 100, "fell": 100, "gone": 100}),
        ([NEW], {"same": 100, "rose": 100, "fell": 100, "gone": 100, "new": 7}),
        ([RAISE], {"same": 100, "rose": 150, "fell": 100, "gone": 100}),
        ([TRIM], {"same": 100, "rose": 100, "fell": 60}),
        ([NEW, TRIM], {"same": 100, "rose": 100, "fell": 60, "new": 7}),
        ([ALL], {"same": 100, "rose": 150, "fell": 60, "new": 7}),
    ],
)
def test_an_update_does_what_it_says_and_nothing_else(updates: list[str], wanted: dict[str, int]) -> None:
    assert peaks(changes(found(whole=True), updates).applied_to(Baseline(RECORDED))) == wanted


def test_a_run_that_had_not_all_tests_removes_nothing() -> None:
    findings = found([entry("same")])
    assert findings.unused == ()
    assert peaks(changes(findings, [ALL]).applied_to(Baseline(RECORDED))) == peaks(Baseline(RECORDED))


def test_a_test_that_did_not_pass_keeps_its_entry() -> None:
    assert [one.key.test for one in found([entry("same")], whole=True, unfinished=["rose", "fell"]).unused] == ["gone"]


@pytest.mark.parametrize("other", [{"torch": "2.12"}, {"backend": "real"}])
def test_an_entry_of_another_torch_or_backend_is_another_runs(other: dict[str, Any]) -> None:
    baseline = Baseline([*RECORDED, entry("gone", **other), entry("same", **other)])
    findings = compare(baseline, MEASURED, to_the_byte, whole=True)
    assert [one.key for one in findings.unused] == [entry("gone").key]


def test_an_entry_of_another_card_is_unused_only_where_the_test_is_gone() -> None:
    baseline = Baseline([*RECORDED, entry("same", card="T4"), entry("gone", card="T4")])
    findings = compare(baseline, MEASURED, to_the_byte, whole=True)
    assert {one.key for one in findings.unused} == {entry("gone").key, entry("gone", card="T4").key}
    # Another test has a T4 in this run, and this one had it too before.
    findings = compare(baseline, [*MEASURED, entry("other", card="T4")], to_the_byte, whole=True)
    assert entry("same", card="T4").key in {one.key for one in findings.unused}


def test_within_the_tolerance_nothing_is_higher_or_lower() -> None:
    recorded = Baseline([entry("t", cuda0=100)])
    for peak, higher, lower in ((110, 0, 0), (111, 1, 0), (90, 0, 0), (89, 0, 1)):
        findings = compare(recorded, [entry("t", cuda0=peak)], ten_more)
        assert (len(findings.higher), len(findings.lower)) == (higher, lower), peak


def test_a_place_that_is_not_named_held_nothing() -> None:
    findings = compare(Baseline([entry("t", cuda0=100)]), [entry("t", cuda1=30)], to_the_byte)
    assert findings.higher[0].places == [("cuda1", 0, 30)]
    assert findings.lower[0].places == [("cuda0", 100, 0)]
    made = changes(findings, [ALL]).applied_to(Baseline([entry("t", cuda0=100)]))
    assert made.entries[entry("t").key].peaks == {"cuda0": 0, "cuda1": 30}


def test_what_takes_nothing_gets_no_entry_and_what_took_something_keeps_one() -> None:
    """An entry of 0 bytes is one that can be broken."""
    assert compare(Baseline(), [entry("t", cuda0=0)], to_the_byte).missing == ()
    lowered = changes(compare(Baseline([entry("t")]), [entry("t", cuda0=0)], to_the_byte, whole=True), [TRIM])
    assert peaks(lowered.applied_to(Baseline([entry("t")]))) == {"t": 0}
    assert compare(Baseline([entry("t", cuda0=0)]), [entry("t", cuda0=1)], to_the_byte).higher


def test_other_measures_stay() -> None:
    recorded = Entry(entry("t").key, {"leak(cuda0)": 3, "peak(cuda0)": 9})
    made = changes(compare(Baseline([recorded]), [entry("t", cuda0=5)], to_the_byte), [TRIM])
    assert made.applied_to(Baseline([recorded])).entries[recorded.key].values == {"leak(cuda0)": 3, "peak(cuda0)": 5}


def test_what_another_process_wrote_meanwhile_is_kept() -> None:
    mine = changes(found(whole=True), [ALL])
    now = Baseline([*RECORDED, entry("theirs", cuda0=1)])
    assert peaks(mine.applied_to(now)) == {"same": 100, "rose": 150, "fell": 60, "new": 7, "theirs": 1}


def test_of_two_that_changed_one_entry_the_higher_peak_stands() -> None:
    mine = changes(found(whole=True), [ALL])
    now = Baseline([entry("rose", cuda0=170), entry("fell", cuda0=80), entry("gone", cuda0=1), entry("new", cuda0=9)])
    assert peaks(mine.applied_to(now)) == {"rose": 170, "fell": 80, "gone": 1, "new": 9}


def test_what_was_deleted_meanwhile_is_written_if_it_was_measured() -> None:
    mine = changes(found(whole=True), [ALL])
    assert peaks(mine.applied_to(Baseline())) == {"rose": 150, "fell": 60, "new": 7}
