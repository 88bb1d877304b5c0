from __future__ import annotations

from pytest_memleak.records.baselines import Entry, Key
from pytest_memleak.records.baselines.attempts import Attempts


def entry(peak: int, **more: int) -> Entry:
    return Entry(Key("t", "cpu", "CPU", "2.13"), {}).with_peaks({"cpu": peak, **more})


def attempt(
    found: Attempts, bad: str = "", peak: int = 1, worker: str = "", whens: str = "setup call teardown"
) -> None:
    for when in whens.split():
        found.phase("t", when, good=when != bad, worker=worker, entry=entry(peak) if when == "teardown" else None)


def test_a_test_that_passed_is_measured() -> None:
    found = Attempts()
    attempt(found)
    assert found.measured == [entry(1)]
    assert found.unfinished == set()
    assert found.tests == {"t"}


def test_any_phase_that_is_bad_leaves_it_unfinished() -> None:
    for bad in ("setup", "call", "teardown"):
        found = Attempts()
        attempt(found, bad)
        assert found.measured == []
        assert found.unfinished == {"t"}


def test_one_that_never_ran_or_never_ended_is_unfinished() -> None:
    for whens in ("setup teardown", "setup call", "???"):
        found = Attempts()
        attempt(found, whens=whens)
        assert found.measured == []
        assert found.unfinished == {"t"}


def test_the_last_attempt_counts() -> None:
    found = Attempts()
    attempt(found, bad="call", peak=9)
    attempt(found, peak=2)
    assert found.measured == [entry(2)]
    assert found.unfinished == set()
    attempt(found, bad="teardown", peak=3)
    assert found.measured == []


def test_of_several_workers_the_highest_peaks_count() -> None:
    found = Attempts()
    attempt(found, peak=2, worker="gw0")
    attempt(found, peak=5, worker="gw1")
    attempt(found, peak=3, worker="gw2")
    assert found.measured == [entry(5)]
