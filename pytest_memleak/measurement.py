"""Everything that is watched during one test, without any word about pytest.

The order of calls is the life of a test: `begin` before its function fixtures are set up, `body_begins`, `body_ended`,
`run_ended` after those fixtures are torn down, `close`. A wider fixture's set-up in between is a `pause` … `resume`.
A test that runs several times goes on from `run_ended` with `run_begins`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from pytest_memleak.cards.card import Card
from pytest_memleak.events import garbage
from pytest_memleak.events.children import ChildWatch
from pytest_memleak.events.recording import Recording
from pytest_memleak.meters import shared
from pytest_memleak.meters.accelerator import release_cached_blocks
from pytest_memleak.meters.gauge import SharedGauge, Window
from pytest_memleak.meters.host import settled
from pytest_memleak.meters.reading import COMMITTED, PREDICTED, Reading
from pytest_memleak.meters.timeline import Recorder, Source, Watch
from pytest_memleak.meters.workspaces import Workspaces
from pytest_memleak.plan import Plan
from pytest_memleak.upstream.loads import ModelObserver
from pytest_memleak.warming import Warming, spy_on

Readings = tuple[Reading, ...]


class Measurement:
    def __init__(
        self,
        plan: Plan,
        card: Card,
        folder: Path,
        recordings: Sequence[Recording] = (),
        smallest: int = 0,
        timed: float | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`folder`: where the test's own code is."""
        self.plan = plan
        self.card = card
        self.bodies: list[Readings] = []
        """One entry a run, read at the end of its body."""
        self.ends: list[Readings] = []
        """One entry a run, read after its fixtures are torn down."""
        self.settled: list[int] = []
        """Committed host memory before the first run and after each, collected and trimmed; for host leaks only."""
        self.observer = ModelObserver() if plan.names or plan.no_nan or plan.same else None
        self.children: tuple[str, ...] = ()
        self._leaks = plan.leak is not None or plan.report
        self._host_leaks = plan.leak is not None and plan.leak.of == "host"
        self._gauges = _gauges(plan, card)
        # `timed`: how often its memory is read while it runs, to begin with.
        sources = () if timed is None else _sources(plan, card, self._gauges)
        self.timeline = Recorder(sources, watch, timed or 0.0)
        self.recordings = tuple(recordings)
        """What is alive at the peak of a device, by the lines that allocated it; blocks of `smallest` or more."""
        self.warming = Warming(plan, card, self.recordings)
        self.warmups = spy_on(card, plan.cap, self.warming)
        self._smallest = smallest
        self._forgotten = 0
        """Refusals of runs that are not to be judged."""
        self._windows: list[Window] = []
        self._child_watch = ChildWatch()
        self.workspaces = Workspaces(folder, plan.cap, self._peaks_are_judged)
        self._undo = contextlib.ExitStack()

    def begin(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.callback(self.workspaces.restore)
            self.card.begin()
            self._settle()
            if self.plan.cap is not None:
                undo.enter_context(self.card.capped(self.plan.cap))
            if self.observer is not None:
                undo.enter_context(self.observer)
            undo.enter_context(self.warmups)
            undo.enter_context(self._child_watch)
            self._undo = undo.pop_all()
        self.timeline.start()
        if self._host_leaks:
            self.settled.append(settled())
        self._open_windows()
        self.timeline.go("setup")
        for recording in self.recordings:
            self._undo.callback(recording.end)
            recording.begin(self._smallest)

    def pause(self) -> None:
        """A fixture of a wider scope is about to be set up: what it does is not the test's."""
        self.timeline.pause()
        for recording in self.recordings:
            recording.pause()
        # As when it goes on: they are no part of what the fixture makes.
        if self._releases:
            self.workspaces.release()
        self.workspaces.asleep = True
        for window in self._windows:
            window.pause()
        self._child_watch.pause()
        self.warmups.pause()
        if self.observer is not None:
            self.observer.pause()

    def resume(self) -> bool:
        """True if the pause changed what is held."""
        # What the wider fixture made must not be found among the test's own objects later.
        garbage.hide_newcomers()
        self._child_watch.resume()
        self.warmups.resume()
        if self.observer is not None:
            self.observer.resume()
        if self._releases:
            self.workspaces.release()
        self.workspaces.asleep = False
        changed = [window.resume() for window in self._windows]  # each of them, also after the first that changed
        for recording in self.recordings:
            recording.resume()
        self.timeline.go()
        return any(changed)

    def body_begins(self) -> None:
        for window in self._windows:
            window.phase("call")
        self.timeline.phase("call")

    def body_ended(self) -> None:
        """The body has returned; its fixtures are still there."""
        self.timeline.phase("teardown")
        self.bodies.append(self._read())
        for recording in self.recordings:
            recording.pause()
        self.children = self._child_watch.unmeasured()

    def run_ended(self, judged: bool = True) -> None:
        """The function fixtures are torn down: what is held now stays. `judged`: somebody will ask how much that is."""
        self.timeline.pause()
        if self._leaks:
            garbage.collect_unless_off()
            self.workspaces.release()
            if judged and self._holds_more():
                # It may have replaced something older: that is among the frozen, where only this looks.
                garbage.collect_everything()
        self.timeline.sample()
        self.ends.append(self._close_windows())
        if self._host_leaks:
            self.settled.append(settled())

    def run_begins(self) -> None:
        """One more run of the same test, with fresh fixtures."""
        if self.observer is not None:
            self.observer.conclude()
        self._settle()
        self._open_windows()
        self.timeline.go("setup")
        for recording in self.recordings:
            recording.resume()

    def forget(self) -> None:
        """The runs so far were for something else than memory: what is judged of that begins anew."""
        self._forgotten = self.refusals
        self.bodies.clear()
        self.ends.clear()
        del self.settled[:-1]
        for recording in self.recordings:
            recording.end()
            recording.begin(self._smallest)
            recording.pause()

    def close(self) -> None:
        """Undoes everything; right at any point, also after a set-up that failed."""
        self.timeline.end()
        self._close_windows()
        self._undo.close()

    @property
    def refusals(self) -> int:
        """Allocations refused so far, whether or not the program caught the error."""
        # A run that was torn down counts with its fixtures' finalizers; the one at hand up to the end of its body.
        counted = [*self.ends, *self.bodies[len(self.ends) :]]
        return self._forgotten + sum(reading.refusals for readings in counted for reading in readings)

    def _settle(self) -> None:
        # pytest drops it as well, but after the window has opened: it would look like memory that a test gave back, and
        # what the frames of a failed test held would count in the peak of the next.
        garbage.drop_last_exception()
        garbage.settle()
        # Either would make a test's numbers, and what fits under its cap, depend on which tests ran before it.
        if self._releases:
            self.workspaces.release()
        if self.plan.baseline:
            release_cached_blocks()

    @property
    def _releases(self) -> bool:
        return bool(self._leaks or self.plan.peak is not None or self.plan.cap is not None or self.plan.baseline)

    def _peaks_are_judged(self) -> bool:
        """By limits that somebody set for this test or a part of it: a baseline knows what was made again."""
        return self.plan.peak is not None or any(gauge.running > 1 for gauge in self._gauges)

    def _holds_more(self) -> bool:
        """Of what the leak is judged by: a process's pages and a card's segments grow in tests without a leak too."""
        of = (self.plan.leak.of if self.plan.leak else None) or "allocated"
        return any(
            reading.grown(kind) > 0
            for reading in self._read()
            for kind in reading.end
            if kind == of or self._host_leaks
        )

    def _open_windows(self) -> None:
        for gauge in self._gauges:
            window = gauge.window()
            window.open("setup")
            self._windows.append(window)

    def _read(self) -> Readings:
        return tuple(window.read() for window in self._windows)

    def _close_windows(self) -> Readings:
        readings = []
        while self._windows:
            readings.append(self._windows.pop().close())
        return tuple(reversed(readings))


def _gauges(plan: Plan, card: Card) -> list[SharedGauge]:
    gauges = card.gauges()
    if plan.peak is not None and plan.peak.of == "driver":
        gauges += card.driver_gauges()
    beside = plan.leak is not None or plan.report
    # The process's own memory is the simulator's as well; what tensors of the CPU take is the program's.
    host_is_tensors = card.backend == "simulated" and plan.host_peak is not None
    if (beside and card.backend != "cpu") or host_is_tensors:
        gauges.append(shared.cpu_tensors())
    if plan.host_peak is not None and not host_is_tensors:
        gauges.append(shared.host())
    return gauges


def _sources(plan: Plan, card: Card, gauges: Sequence[SharedGauge]) -> list[Source]:
    """Of each gauge the kinds that the checks ask for."""
    peak = leak = None
    if plan.peak is not None or plan.cap is not None or plan.report:
        peak = (plan.peak.of if plan.peak else None) or "allocated"
    if plan.report or (plan.leak is not None and plan.leak.of != "host"):
        leak = (plan.leak.of if plan.leak else None) or "allocated"
    sources = []
    for gauge in (one.gauge for one in gauges):
        if gauge.device == "host":
            sources.append(Source(gauge, COMMITTED, "host"))
            continue
        beside = gauge.device == "cpu" and card.backend != "cpu"
        if beside and card.backend == "simulated" and plan.host_peak is not None:
            sources.append(Source(gauge, COMMITTED, "host", predicted=True))
        for kind in dict.fromkeys((leak,) if beside else (peak, leak)):
            if kind in gauge.kinds:
                sources.append(Source(gauge, kind, gauge.device, gauge.how == PREDICTED))
    return sources
