"""How much was held while a test ran: the levels of its gauges, as one thread of our own reads them.

It reads `gauge.now()` and nothing else. A gauge's peak starts anew whenever it is read, so that a peak read here would
be missing in the test's window, and a broken promise would pass.
"""

from __future__ import annotations

import threading
import time
from array import array
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from pytest_memleak.meters.gauge import Gauge
from pytest_memleak.meters.reading import PREDICTED, Levels
from pytest_memleak.meters.ticking import Ticker
from pytest_memleak.records.record import Timeline

INTERVAL = 0.001
"""To begin with, for a page; it doubles whenever the points are full. The reading itself takes 1 µs (6 µs of host
memory), but a thread that wakes costs 100 µs: a loop of small operations or training steps takes up to 13 % more of the
processor in a test's first half second, 1 % to 5 % over some seconds (benchmarks/timeline.py)."""
SELDOM = 0.01
"""The same where only a live line is wanted, which is there by default and so must not cost more than 2 %."""
POINTS = 512
"""On a page 1,000 pixels wide, more could not be told apart."""
_REDRAW = 0.25


@dataclass(frozen=True)
class Source:
    """What one curve is drawn of."""

    gauge: Gauge
    kind: str
    device: str
    """As the results call it: what tensors take of the CPU is "host" where that is judged as host memory."""
    predicted: bool = False


class Curve:
    """The points of one source, of a bounded number."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # Arrays: the collector does not see them, and so does not run earlier for them in the program's place.
        self.seconds = array("d")
        self.bytes = array("q")
        self.now = 0
        self.highest = 0
        self.base = 0
        """What was there first, and what came in pauses."""
        self.grown = 0
        """The most over `base`."""

    def add(self, second: float, level: int) -> None:
        # Two readings within a microsecond would be one point when they are written down.
        self.seconds.append(max(second, self.seconds[-1] + 1e-6) if self.seconds else second)
        self.bytes.append(level)

    def see(self, level: int) -> None:
        self.now = level
        self.highest = max(self.highest, level)
        self.grown = max(self.grown, level - self.base)

    def thin(self) -> None:
        """Halves the points. The first stays, and of each two that follow the higher one: no spike ever vanishes."""
        seconds, levels = self.seconds, self.bytes
        kept = [0]
        for left in range(1, len(levels), 2):
            right = min(left + 1, len(levels) - 1)
            kept.append(right if levels[right] > levels[left] else left)
        self.seconds = array("d", [seconds[index] for index in kept])
        self.bytes = array("q", [levels[index] for index in kept])


Watch = Callable[[float, Sequence[Curve]], None]
"""Is called on the thread that reads, a few times a second: with the second of the test, and all curves."""


class Recorder:
    """One test's. Without a source it does nothing, and there is no thread.

    A pause is left out: the windows are closed to what happens in it as well, and a wider fixture's spike in the curve
    would contradict the peak beside it. The clock stands still, so what the pause brought is a step.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        watch: Watch | None = None,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.curves = [Curve(source) for source in sources]
        self.failure = ""
        """Why nothing was read any more."""
        self._watch = watch
        self._clock = clock
        self._interval = interval
        self._phases: list[tuple[str, float]] = []
        self._running = False
        self._passed = 0.0
        """Seconds before `_since`."""
        self._since = 0.0
        self._due = 0.0
        self._redraw_at = 0.0
        # Of the program's thread and ours. Signal handlers of time-outs run in the middle of anything.
        self._lock = threading.RLock()
        # A thread of this name is known to allocate no tensors (events/older_threads.py).
        self._ticker = Ticker(self._tick, "memleak-timeline")

    def start(self) -> None:
        """Before the windows open: what a thread takes for itself is no growth of theirs."""
        if self.curves:
            self._ticker.start()

    def go(self, phase: str = "") -> None:
        """The windows are open, or open again after a pause."""
        if not self.curves:
            return
        with self._lock:
            self._since = self._clock()
            before = [curve.now for curve in self.curves]
            for curve, level in zip(self.curves, self._levels(), strict=True):
                curve.base = level if phase else curve.base + level - curve.now
                curve.see(level)
            if phase or before != [curve.now for curve in self.curves]:
                self._append(self._passed)
            if phase:
                self._phases.append((phase, self._passed))
            self._running = True
        self._ticker.ring()

    def phase(self, name: str) -> None:
        """One part of the test ends and another begins: both have a point there, however short they are."""
        if self.curves:
            with self._lock:
                second = self._second()
                self._read(second)
                self._phases.append((name, second))

    def pause(self) -> None:
        """From its return on nothing is read, until `go`."""
        with self._lock:
            if self._running:
                self._read(self._second())
                self._passed, self._running = self._second(), False

    def sample(self) -> None:
        """In a pause, too."""
        if self.curves:
            with self._lock:
                self._read(self._second())

    def end(self) -> None:
        """There is no thread any more."""
        with self._lock:
            self._passed, self._running = self._second(), False
        self._ticker.stop()

    def timelines(self, judged: Container[str] = ()) -> tuple[Timeline, ...]:
        """Of a device that nothing is known of there is none: neither a level that was seen, nor a judgement."""
        with self._lock:
            return tuple(
                self._timeline(curve)
                for number, curve in enumerate(self.curves)
                if curve.seconds and (number == 0 or any(curve.bytes) or curve.source.device in judged)
            )

    def _timeline(self, curve: Curve) -> Timeline:
        source = curve.source
        span = curve.seconds[-1] - curve.seconds[0]
        # A program that keeps the interpreter to itself lets nobody read: then it was less often.
        reached = max(self._interval, span / max(1, len(curve.seconds) - 1))
        how = f"{PREDICTED}, " if source.predicted else ""
        return Timeline(
            device=source.device,
            kind=source.kind,
            how=f"{how}sampled every {_short(reached)}{f', until {self.failure}' if self.failure else ''}",
            seconds=tuple(round(second, 6) for second in curve.seconds),
            bytes=tuple(curve.bytes),
            phases=tuple((name, round(second, 6)) for name, second in self._phases),
        )

    def _second(self) -> float:
        return self._passed + (self._clock() - self._since if self._running else 0.0)

    def _levels(self) -> list[int]:
        found: dict[int, Levels] = {}
        for curve in self.curves:
            gauge = curve.source.gauge
            if not self.failure and id(gauge) not in found:
                try:
                    found[id(gauge)] = gauge.now()
                except Exception as error:  # noqa: BLE001 – the test must not suffer for its picture, which says so
                    self.failure = f"{gauge.device} could not be read ({error!r})"
        if self.failure:
            return [curve.now for curve in self.curves]
        return [found[id(curve.source.gauge)][curve.source.kind] for curve in self.curves]

    def _read(self, second: float) -> None:
        for curve, level in zip(self.curves, self._levels(), strict=True):
            curve.see(level)
        self._append(second)

    def _append(self, second: float) -> None:
        if self.failure:
            return
        if len(self.curves[0].seconds) >= POINTS:
            for curve in self.curves:
                curve.thin()
            # As far apart as those that are kept; the ends of a test's parts and runs are points beside them.
            self._interval = max(self._interval, 2 * second / POINTS)
        for curve in self.curves:
            curve.add(second, curve.now)
        self._due = second + self._interval

    def _tick(self) -> float | None:
        with self._lock:
            if not self._running or self.failure:
                self._levels()  # the first time: stack and memory are touched before a window looks at the process
                return None
            second = self._second()
            for curve, level in zip(self.curves, self._levels(), strict=True):
                curve.see(level)
            if second >= self._due:
                self._append(second)
            wait = self._due - second
            drawing = self._watch if second >= self._redraw_at else None
        if drawing is not None:
            self._redraw_at = second + _REDRAW
            self._show(drawing, second)
        return wait if self._watch is None else min(wait, _REDRAW)

    def _show(self, watch: Watch, second: float) -> None:
        try:
            watch(second, self.curves)
        except Exception:  # noqa: BLE001 – what a thread raises becomes a warning of the test's, and with -W error a failure
            self._watch = None


def _short(seconds: float) -> str:
    value, unit = (seconds, "s") if seconds >= 1 else (seconds * 1000, "ms")
    return f"{float(f'{value:.2g}'):g} {unit}"
