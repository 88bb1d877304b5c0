"""What every source of readings offers, and the windows that share one source.

A *gauge* stands for one place where memory can be: a device's allocator, torch's CPU allocator, the process's committed
memory. It knows two numbers, the level now and the highest level since it was last asked. Several *windows* can be open
on one gauge at a time (a test, and `memory.measure(...)` inside it), and the program itself may reset the allocator's
peak: so nobody reads the gauge's peak directly. Every reset first folds the peak into all open windows.

While a library warms its allocator up (one large request that is dropped at once) the peak is kept apart as well: each
window knows the highest level with and without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from pytest_memleak.meters.reading import UNSEEN, Highest, Levels, Reading


class Gauge(Protocol):
    device: str
    """What the numbers belong to: ``cuda:0``, ``cpu``, ``host``."""
    kinds: tuple[str, ...]
    """The kinds it can tell; the first is the default of ``of=``."""
    how: str
    """How the numbers are got, in words a report prints: ``measured``, ``sampled every 1 ms``."""
    by_growth: bool
    """The peak is where most is held over the base, not where the level is highest: what is not the test's may go."""

    def now(self) -> Levels:
        """The level at this moment."""

    def take_peaks(self) -> Levels:
        """The highest level since the last call (or since the gauge began), and start anew from the level now."""

    def refusals(self) -> int:
        """How many allocations were refused so far (an out-of-memory, caught or not)."""

    def begin(self) -> None:
        """The first window is about to open: switch on what costs something while it runs."""

    def end(self) -> None:
        """The last window has closed: switch it off."""

    def give_back(self) -> None:
        """A base is about to be taken: let go of what is free and kept for later. Used again, it would be no growth.
        What that takes for a moment is no peak: whoever wants the one before asks first."""

    def one_look(self) -> contextlib.AbstractContextManager[None]:
        """What is asked until the end is of one moment, so that the gauge need not look for each question."""

    def unseen(self) -> int:
        """Bytes alive now that were never seen being allocated; they bound the peak from above."""

    def unseen_peak(self) -> int:
        """The most of such bytes that were alive at a time since the last call, as far as that was noticed."""

    def mapped_peak(self) -> int:
        """The most bytes of tensors in mapped files that were alive at a time since the last call."""

    def blindness(self) -> str | None:
        """Why the numbers cannot be trusted, or None."""


class PlainGauge:
    """What there is to say of a gauge that keeps nothing back and misses nothing."""

    by_growth = False

    def give_back(self) -> None:
        pass

    def one_look(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def unseen(self) -> int:
        return 0

    def unseen_peak(self) -> int:
        return 0

    def mapped_peak(self) -> int:
        return 0

    def blindness(self) -> str | None:
        return None


class SharedGauge:
    """One gauge and the windows open on it. All resets of the peak go through `fold`."""

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge
        self._windows: list[Window] = []
        self._open = 0  # windows that are open, paused ones too
        self._warming = 0
        # A program's thread may reset the peak while the main thread opens a window.
        self._lock = threading.RLock()

    def fold(self) -> None:
        """Gives the peak since the last fold to every running window, and starts it anew."""
        with self._lock, self.gauge.one_look():
            self.take_peaks()
            unseen, mapped = self.gauge.unseen_peak(), self.gauge.mapped_peak()
            for window in self._windows:
                window._unseen_peak = max(window._unseen_peak, unseen)
                window._mapped_peak = max(window._mapped_peak, mapped)

    def take_peaks(self) -> Levels:
        """The same for the levels alone, without a look for what the gauge did not see; it says what they were."""
        with self._lock:
            peaks = self.gauge.take_peaks()
            for window in self._windows:
                window._raise_to(peaks, self._warming > 0)
            return peaks

    @contextlib.contextmanager
    def warming(self) -> Iterator[None]:
        """Until the end a peak is a warm-up's; what is held when it ends is not."""
        with self._lock:
            self.fold()
            self._warming += 1
        try:
            yield
        finally:
            with self._lock:
                self.fold()
                self._warming -= 1

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What is done until the end is nobody's: no window sees its peak, and what it leaves belongs to their base."""
        with self._lock:
            running = list(self._windows)
            for window in running:
                window.pause()
            try:
                yield
            finally:
                for window in running:
                    window.resume()

    def window(self) -> Window:
        return Window(self)

    @property
    def running(self) -> int:
        """How many windows are open, and do not pause."""
        return len(self._windows)


class Window:
    """A stretch of time on one gauge, with pauses: the set-up of wider fixtures is not the test's."""

    def __init__(self, shared: SharedGauge) -> None:
        self._shared = shared
        self._phase = ""
        self._base: dict[str, int] = {}
        self._highest, self._unwarmed = self._from_base()
        self._warmed = False
        self._paused_at: Levels = {}
        self._unseen_before = 0
        self._unseen_at_pause = 0
        self._unseen_peak = 0
        self._mapped_peak = 0
        self._refusals_at_pause = 0
        self._refusals = 0

    def open(self, phase: str = "") -> None:
        with self._shared._lock:
            if not self._shared._open:
                self._shared.gauge.begin()
            self._shared._open += 1
            with self._shared.gauge.one_look():
                self._shared.fold()
                self._shared.gauge.give_back()
                self._base = dict(self._shared.gauge.now())
                self._unseen_before = self._shared.gauge.unseen()
            self._refusals = self._shared.gauge.refusals()
            self._highest, self._unwarmed = self._from_base()
            self._phase = phase
            self._shared._windows.append(self)

    def pause(self) -> None:
        with self._shared._lock, self._shared.gauge.one_look():
            self._shared.fold()
            self._shared._windows.remove(self)
            self._shared.gauge.give_back()
            self._paused_at = self._shared.gauge.now()
            self._unseen_at_pause = self._shared.gauge.unseen()
            self._refusals_at_pause = self._shared.gauge.refusals()

    def resume(self) -> bool:
        """Goes on; what was allocated or released in the pause belongs to the base. True if that is anything."""
        with self._shared._lock, self._shared.gauge.one_look():
            self._shared.fold()
            self._shared.gauge.give_back()
            now = self._shared.gauge.now()
            changed = dict(now) != dict(self._paused_at) or self._shared.gauge.unseen() != self._unseen_at_pause
            for kind, level in now.items():
                self._base[kind] += level - self._paused_at[kind]
            self._unseen_before += self._shared.gauge.unseen() - self._unseen_at_pause
            self._refusals += self._shared.gauge.refusals() - self._refusals_at_pause
            self._shared._windows.append(self)
            self._raise_to(now)
            return changed

    def phase(self, name: str) -> None:
        """What comes from now on is counted under another name as well."""
        with self._shared._lock:
            self._shared.fold()
            self._phase = name
            self._raise_to(self._shared.gauge.now())

    def read(self) -> Reading:
        """The reading up to now; the window stays open."""
        with self._shared._lock, self._shared.gauge.one_look():
            self._shared.fold()
            gauge = self._shared.gauge
            return Reading(
                device=gauge.device,
                how=gauge.how,
                base=dict(self._base),
                **vars(self._highest.copied()),
                end=dict(gauge.now()),
                refusals=gauge.refusals() - self._refusals,
                unseen=gauge.unseen(),
                unseen_before=self._unseen_before,
                unseen_peak=self._unseen_peak,
                mapped_peak=self._mapped_peak,
                unseen_is=getattr(gauge, "unseen_is", UNSEEN),
                blind=gauge.blindness(),
                unwarmed=self._unwarmed.copied() if self._warmed else None,
            )

    def close(self) -> Reading:
        with self._shared._lock:
            reading = self.read()
            if self in self._shared._windows:  # closed in a pause, it has left already
                self._shared._windows.remove(self)
            self._shared._open -= 1
            if not self._shared._open:
                self._shared.gauge.end()
            return reading

    def _from_base(self) -> tuple[_Highest, _Highest]:
        start = {kind: _Height(level, level) for kind, level in self._base.items()}
        by_growth = self._shared.gauge.by_growth
        return _Highest(by_growth, dict(start)), _Highest(by_growth, dict(start))

    def _raise_to(self, levels: Levels, warming: bool = False) -> None:
        self._warmed = self._warmed or warming
        self._highest.raise_to(levels, self._base, self._phase)
        if not warming:
            self._unwarmed.raise_to(levels, self._base, self._phase)


class _Height(NamedTuple):
    level: int
    base: int


@dataclass
class _Highest:
    """Rises as the levels are told."""

    by_growth: bool
    peak: dict[str, _Height]
    phases: dict[str, dict[str, _Height]] = field(default_factory=dict)

    def raise_to(self, levels: Levels, base: Levels, phase: str) -> None:
        of_phase = self.phases.setdefault(phase, {}) if phase else {}
        for kind, level in levels.items():
            height = _Height(level, base[kind])
            self.peak[kind] = self._higher(self.peak[kind], height)
            of_phase[kind] = self._higher(of_phase.get(kind, height), height)

    def _higher(self, one: _Height, other: _Height) -> _Height:
        """The first of two that are equal."""
        if self.by_growth:
            return other if other.level - other.base > one.level - one.base else one
        return other if other.level > one.level else one

    def copied(self) -> Highest:
        return Highest(
            {kind: height.level for kind, height in self.peak.items()},
            {kind: height.base for kind, height in self.peak.items()},
            {name: {kind: height.level for kind, height in levels.items()} for name, levels in self.phases.items()},
        )
