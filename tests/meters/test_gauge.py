"""Windows on a shared gauge, with fed readings: pauses, phases, resets by the program, one window inside another."""

from __future__ import annotations

import pytest

from pytest_memleak.meters.gauge import PlainGauge, SharedGauge
from pytest_memleak.meters.reading import Levels


class Fed(PlainGauge):
    """A gauge whose level the test sets."""

    device = "fed"
    kinds: tuple[str, ...] = ("allocated",)
    how = "fed"

    def __init__(self) -> None:
        self.level = 0
        self.highest = 0
        self.refused = 0
        self.foreign = 0
        self.running = 0
        self.kept = 0

    def go(self, *levels: int) -> None:
        for level in levels:
            self.level = level
            self.highest = max(self.highest, level)

    def now(self) -> Levels:
        return {"allocated": self.level}

    def take_peaks(self) -> Levels:
        peak, self.highest = self.highest, self.level
        return {"allocated": peak}

    def refusals(self) -> int:
        return self.refused

    def begin(self) -> None:
        self.running += 1

    def end(self) -> None:
        self.running -= 1

    def give_back(self) -> None:
        self.level -= self.kept
        self.kept = 0
        self.highest = self.level  # what that takes for a moment is no peak

    def unseen(self) -> int:
        return self.foreign


def test_peak_is_absolute_and_knows_its_base() -> None:
    fed = Fed()
    fed.go(900, 100)
    window = SharedGauge(fed).window()
    window.open()
    fed.go(150, 120)
    reading = window.close()
    assert (reading.base["allocated"], reading.peak["allocated"], reading.end["allocated"]) == (100, 150, 120)
    assert reading.grown("allocated") == 20


def test_what_a_pause_brings_is_base_and_its_transient_is_nobodys() -> None:
    fed = Fed()
    fed.go(100)
    window = SharedGauge(fed).window()
    window.open()
    fed.go(130, 110)
    window.pause()
    fed.go(5000, 310)
    window.resume()
    fed.go(350, 325)
    reading = window.close()
    assert reading.peak["allocated"] == 350
    assert reading.base_at_peak["allocated"] == 300
    assert reading.grown("allocated") == 25  # 10 before the pause, 15 after it


def test_what_is_done_aside_is_nobodys() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    outer, paused, inner = shared.window(), shared.window(), shared.window()
    outer.open()
    paused.open()
    paused.pause()
    inner.open()
    fed.go(40)
    with shared.aside():
        fed.go(5000, 300)
    fed.go(310)
    paused.resume()
    for window in (outer, inner):
        reading = window.close()
        assert reading.peak["allocated"] - reading.base_at_peak["allocated"] == 50
        assert reading.grown("allocated") == 50
    assert paused.close().grown("allocated") == 0


def test_what_is_only_kept_for_later_is_in_no_base() -> None:
    fed = Fed()
    fed.go(100)
    fed.kept = 30
    window = SharedGauge(fed).window()
    window.open()  # 70
    fed.go(320, 110)
    fed.kept = 40  # of the test's own, and no part of what the pause changes
    window.pause()
    fed.go(500, 200)
    fed.kept = 20  # of the pause's
    window.resume()
    fed.go(200)
    reading = window.close()
    assert reading.base["allocated"] == 70 + 110
    assert reading.peak["allocated"] - reading.base_at_peak["allocated"] == 250
    assert reading.grown("allocated") == 20


def test_base_at_peak_is_that_of_the_moment() -> None:
    fed = Fed()
    window = SharedGauge(fed).window()
    window.open()
    fed.go(500, 0)
    window.pause()
    fed.go(200)
    window.resume()
    reading = window.close()
    assert (reading.peak["allocated"], reading.base_at_peak["allocated"], reading.base["allocated"]) == (500, 0, 200)


@pytest.mark.parametrize(("by_growth", "seen"), [(True, (460, 400)), (False, (540, 500))])
def test_what_others_let_go_of_hides_no_growth(by_growth: bool, seen: tuple[int, int]) -> None:
    """Of a process's memory the growth counts; of a card's the highest level, whoever had it."""
    fed = Fed()
    fed.by_growth = by_growth
    fed.go(500)
    shared = SharedGauge(fed)
    window = shared.window()
    window.open("call")
    fed.go(540)
    with shared.aside():
        fed.go(440)
    fed.go(460)
    reading = window.close()
    assert (reading.peak["allocated"], reading.base_at_peak["allocated"]) == seen
    assert reading.phases["call"]["allocated"] == seen[0]


def test_phases_have_peaks_of_their_own() -> None:
    fed = Fed()
    window = SharedGauge(fed).window()
    window.open("setup")
    fed.go(70, 20)
    window.phase("call")
    fed.go(50, 10)
    reading = window.close()
    assert {name: levels["allocated"] for name, levels in reading.phases.items()} == {"setup": 70, "call": 50}


def test_fold_keeps_what_a_reset_would_hide() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    window = shared.window()
    window.open()
    fed.go(80, 0)
    shared.fold()
    fed.take_peaks()  # the program's own reset
    assert window.close().peak["allocated"] == 80


def test_window_inside_a_window_hides_nothing() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    outer, inner = shared.window(), shared.window()
    outer.open()
    fed.go(80, 10)
    inner.open()
    fed.go(30, 10)
    assert inner.close().peak["allocated"] == 30
    assert outer.close().peak["allocated"] == 80


def test_a_window_that_pauses_within_another_hides_nothing() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    outer, inner = shared.window(), shared.window()
    outer.open()
    inner.open()
    fed.go(80, 10)
    inner.pause()
    assert outer.read().peak["allocated"] == 80
    fed.go(90, 10)
    inner.resume()
    assert outer.read().peak["allocated"] == 90


def test_read_leaves_the_window_open() -> None:
    fed = Fed()
    window = SharedGauge(fed).window()
    window.open()
    fed.go(10)
    assert window.read().peak["allocated"] == 10
    fed.go(20)
    assert window.close().peak["allocated"] == 20


def test_gauge_runs_while_any_window_is_open_paused_ones_included() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    first, second = shared.window(), shared.window()
    first.open()
    second.open()
    first.pause()
    assert fed.running == 1
    second.close()
    assert fed.running == 1
    first.close()  # closed in its pause, as after a fixture that failed
    assert fed.running == 0


def test_refusals_and_foreign_memory_are_the_windows_own() -> None:
    fed = Fed()
    fed.refused, fed.foreign = 3, 1000
    window = SharedGauge(fed).window()
    window.open()
    fed.refused, fed.foreign = 5, 1200
    window.pause()
    fed.refused, fed.foreign = 9, 1900
    window.resume()
    reading = window.close()
    assert reading.refusals == 2
    assert reading.unseen - reading.unseen_before == 200
    assert reading.grown("allocated") == 200


def test_a_warm_up_is_in_the_peak_and_kept_apart() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    window, later = shared.window(), shared.window()
    window.open("setup")
    fed.go(10)
    window.phase("call")
    fed.go(300, 20)
    with shared.warming():
        fed.go(1000, 30)
        later.open()  # in the middle of it
    fed.go(200, 5)
    reading = window.read()
    assert (reading.peak, reading.without_warmup().peak) == ({"allocated": 1000}, {"allocated": 300})
    assert reading.without_warmup().phases == {"setup": {"allocated": 10}, "call": {"allocated": 300}}
    assert reading.phases["call"] == {"allocated": 1000}
    assert later.close().without_warmup().peak == {"allocated": 200}
    window.close()


def test_what_a_warm_up_leaves_behind_is_not_the_warm_ups() -> None:
    fed = Fed()
    shared = SharedGauge(fed)
    window = shared.window()
    window.open()
    with shared.warming():
        fed.go(1000, 400)
    fed.go(0)
    assert window.close().without_warmup().peak == {"allocated": 400}


def test_without_a_warm_up_there_is_one_peak() -> None:
    fed = Fed()
    window = SharedGauge(fed).window()
    window.open()
    fed.go(7, 0)
    reading = window.close()
    assert reading.unwarmed is None
    assert reading.without_warmup() is reading
