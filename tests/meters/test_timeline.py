"""The curve of a test's memory: fed levels at fed seconds; and the thread that reads them, as long as it is wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from pytest_memleak.meters import ticking
from pytest_memleak.meters.reading import PREDICTED, Levels
from pytest_memleak.meters.ticking import Ticker
from pytest_memleak.meters.timeline import INTERVAL, POINTS, Curve, Recorder, Source
from tests.meters.test_gauge import Fed


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


class Told(Fed):
    """Tells what it is told to, counts who asks, and gives no peak away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Semaphore(0)

    def now(self) -> Levels:
        self.asked.release()
        return super().now()

    def take_peaks(self) -> Levels:
        raise AssertionError("a peak that is read here is missing in the test's own window")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fed() -> Told:
    return Told()


@pytest.fixture
def recorder(fed: Told, clock: Clock) -> Iterator[Recorder]:
    """Without its thread: what it reads, it reads when it is told to."""
    one = Recorder([Source(fed, "allocated", "cpu")], clock=clock)
    yield one
    one.end()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "memleak-timeline"]


def wait_for(fed: Told, readings: int) -> None:
    for _ in range(readings):
        assert fed.asked.acquire(timeout=60)


def test_each_part_has_a_point_at_its_begin_and_its_end(recorder: Recorder, fed: Told, clock: Clock) -> None:
    fed.level = 10
    recorder.go("setup")
    clock.time, fed.level = 100.0005, 30
    recorder.phase("call")
    clock.time, fed.level = 100.002, 50
    recorder.phase("teardown")
    clock.time, fed.level = 100.0025, 20
    recorder.pause()
    recorder.end()
    (drawn,) = recorder.timelines()
    assert drawn.phases == (("setup", 0.0), ("call", 0.0005), ("teardown", 0.002))
    assert list(zip(drawn.seconds, drawn.bytes, strict=True)) == [(0.0, 10), (0.0005, 30), (0.002, 50), (0.0025, 20)]
    assert (drawn.device, drawn.kind, drawn.how) == ("cpu", "allocated", "sampled every 1 ms")


def test_a_pause_is_left_out_and_what_it_brings_is_a_step(recorder: Recorder, fed: Told, clock: Clock) -> None:
    recorder.go("setup")
    clock.time, fed.level = 101.0, 5
    recorder.pause()
    clock.time, fed.level = 161.0, 900
    recorder.go()
    clock.time, fed.level = 162.0, 950
    recorder.phase("call")
    (drawn,) = recorder.timelines()
    assert drawn.bytes == (0, 5, 900, 950)
    assert drawn.seconds == (0.0, 1.0, 1.000001, 2.0)
    assert drawn.phases == (("setup", 0.0), ("call", 2.0))
    (curve,) = recorder.curves
    assert (curve.highest, curve.base, curve.grown) == (950, 895, 55)


def test_the_next_run_goes_on_where_the_last_one_ended(recorder: Recorder, fed: Told, clock: Clock) -> None:
    for run in range(3):
        clock.time = 100.0 + 10 * run
        recorder.go("setup")
        clock.time += 1
        fed.level += 1
        recorder.phase("call")
        recorder.pause()
        recorder.sample()
    (drawn,) = recorder.timelines()
    assert drawn.phases == (("setup", 0.0), ("call", 1.0), ("setup", 1.0), ("call", 2.0), ("setup", 2.0), ("call", 3.0))
    assert drawn.bytes[-1] == 3
    assert list(drawn.seconds) == sorted(set(drawn.seconds))


@pytest.mark.parametrize("at", [1, 700, 701, 4321, 9_998])
def test_points_are_few_and_no_spike_vanishes(recorder: Recorder, fed: Told, clock: Clock, at: int) -> None:
    recorder.go("setup")
    for number in range(1, 10_000):
        clock.time = 100 + number * INTERVAL
        fed.level = 10**9 if number == at else number % 7
        recorder.sample()
    (drawn,) = recorder.timelines()
    assert POINTS // 2 <= len(drawn.seconds) <= POINTS
    assert list(drawn.seconds) == sorted(set(drawn.seconds))
    assert drawn.seconds[0] == 0.0
    assert drawn.seconds[-1] == pytest.approx(9.999)
    assert drawn.seconds[drawn.bytes.index(10**9)] == pytest.approx(at * INTERVAL)
    clock.time += 1
    wait = recorder._tick()
    assert wait == pytest.approx(2 * 10 / POINTS, rel=0.01)  # the thread reads less often, too


def test_whoever_watches_is_told_more_often_than_a_long_test_is_read(fed: Told, clock: Clock) -> None:
    seconds: list[float] = []
    recorder = Recorder([Source(fed, "allocated", "cpu")], lambda second, curves: seconds.append(second), 8.0, clock)
    recorder.go("setup")
    for _ in range(17):
        wait = recorder._tick()
        assert wait == 0.25
        clock.time += wait
    assert len(seconds) == 17
    assert recorder.timelines()[0].seconds == (0.0,)


def test_thinned_points_are_the_higher_ones_of_each_two() -> None:
    curve = Curve(Source(Told(), "allocated", "cpu"))
    for second, level in enumerate([3, 1, 9, 4, 4, 0]):
        curve.add(float(second), level)
    curve.thin()
    assert (list(curve.seconds), list(curve.bytes)) == ([0.0, 2.0, 3.0, 5.0], [3, 9, 4, 0])


def test_how_says_what_was_reached_and_not_what_was_meant(recorder: Recorder, clock: Clock) -> None:
    recorder.go("setup")
    clock.time = 103
    recorder.phase("call")
    clock.time = 106
    recorder.phase("teardown")
    assert recorder.timelines()[0].how == "sampled every 3 s"  # nobody else got hold of the interpreter


def test_predicted_numbers_stay_predictions(fed: Told) -> None:
    recorder = Recorder([Source(fed, "allocated", "host", predicted=True)])
    recorder.go("setup")
    assert recorder.timelines()[0].how == f"{PREDICTED}, sampled every 1 ms"


def test_devices_that_nobody_used_are_left_out(fed: Told) -> None:
    unused = Told()

    def drawn(*gauges: Told, judged: tuple[str, ...] = ()) -> list[str]:
        recorder = Recorder([Source(gauge, "allocated", f"cuda:{n}") for n, gauge in enumerate(gauges)])
        recorder.go("setup")
        return [one.device for one in recorder.timelines(judged)]

    fed.level = 5
    assert drawn(unused, fed, unused) == ["cuda:0", "cuda:1"]
    assert drawn(unused, unused, unused, judged=("cuda:2",)) == ["cuda:0", "cuda:2"]  # it passed too quickly to be seen


def test_a_gauge_that_fails_ends_the_curve_and_nothing_else(
    recorder: Recorder, fed: Told, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Levels:
        raise OSError("gone")

    fed.level = 7
    recorder.go("setup")
    monkeypatch.setattr(fed, "now", broken)
    clock.time = 101
    recorder.phase("call")
    recorder.pause()
    (drawn,) = recorder.timelines()
    assert drawn.bytes == (7,)
    assert drawn.how.endswith("until fed could not be read (OSError('gone'))")


def test_one_thread_reads_while_a_window_is_open(fed: Told) -> None:
    before = threading.active_count()
    recorder = Recorder([Source(fed, "allocated", "cpu")])
    recorder.start()
    recorder.go("setup")
    wait_for(fed, 20)
    assert [thread.daemon for thread in threads()] == [True]
    recorder.pause()
    points = len(recorder.timelines()[0].seconds)
    assert points >= 10
    recorder.go()
    wait_for(fed, 20)
    recorder.end()
    assert threading.active_count() == before
    assert len(recorder.timelines()[0].seconds) > points
    recorder.end()  # an interrupted run ends it once more


def test_nothing_is_recorded_in_a_pause(fed: Told) -> None:
    recorder = Recorder([Source(fed, "allocated", "cpu")])
    recorder.start()
    recorder.go("setup")
    recorder.pause()
    fed.level = 10**9
    while fed.asked.acquire(blocking=False):
        pass
    recorder._ticker.ring()
    wait_for(fed, 1)  # it has been awake since
    fed.level = 3
    recorder.go()
    recorder.end()
    assert max(recorder.timelines()[0].bytes) == recorder.curves[0].highest == 3


def test_without_a_source_there_is_no_thread() -> None:
    recorder = Recorder(())
    recorder.start()
    recorder.go("setup")
    recorder.phase("call")
    recorder.pause()
    recorder.sample()
    assert (threads(), recorder.timelines()) == ([], ())
    recorder.end()


def test_where_no_more_threads_can_be_had_the_parts_have_their_points(
    fed: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    recorder = Recorder([Source(fed, "allocated", "cpu")])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        recorder.start()
    recorder.go("setup")
    recorder.phase("call")
    recorder.end()
    assert len(recorder.timelines()[0].bytes) == 2


def test_whoever_watches_gets_the_levels_and_may_fail(fed: Told) -> None:
    seen: list[tuple[int, int]] = []
    called = threading.Semaphore(0)

    def watch(second: float, curves: Sequence[Curve]) -> None:
        seen.append((curves[0].now, curves[0].highest))
        called.release()
        raise ValueError("the terminal is gone")

    fed.level = 12
    recorder = Recorder([Source(fed, "allocated", "cpu")], watch)
    recorder.start()
    recorder.go("setup")
    assert called.acquire(timeout=60)
    wait_for(fed, 20)
    recorder.end()
    assert seen == [(12, 12)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_finds_no_thread_and_the_parent_goes_on(fed: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    halt = Ticker._halt

    def halting(ticker: Ticker) -> None:
        halt(ticker)
        seen.append(f"{len(threads())} at the fork")

    monkeypatch.setattr(Ticker, "_halt", halting)
    recorder = Recorder([Source(fed, "allocated", "cpu")])
    recorder.start()
    recorder.go("setup")
    wait_for(fed, 10)
    if (child := os.fork()) == 0:
        recorder.phase("call")  # no lock is held by a thread that is not here
        recorder.end()
        os._exit(len(ticking._tickers))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert seen == ["0 at the fork"]
    assert recorder._ticker.alive
    wait_for(fed, 100)
    recorder.end()
    assert not threads()
