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
from typing import Protocol

from pytest_memleak.meters.reading import UNSEEN, Highest, Levels, Reading


class Gauge(Protocol):
    device: str
    """What the numbers belong to: ``cuda:0``, ``cpu``, ``host``."""
    kinds: tuple[str, ...]
    """The kinds it can tell; the first is the default of ``of=``."""
    how: str
    """How the numbers are got, in words a report prints: ``measured``, ``sampled every 1 ms``."""

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

    def unseen(self) -> int:
        """Bytes alive now that were never seen being allocated; they bound the peak from above."""

    def unseen_peak(self) -> int:
        """The most of such bytes that were alive at a time since the last call, as far as that was noticed."""

    def mapped_peak(self) -> int:
        """The most bytes of tensors in mapped files that were alive at a time since the last call."""

    def blindness(self) -> str | None:
        """Why the numbers cannot be trusted, or None."""


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
        with self._lock:
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

    def window(self) -> Window:
        return Window(self)


class Window:
    """A stretch of time on one gauge, with pauses: the set-up of wider fixtures is not the test's."""

    def __init__(self, shared: SharedGauge) -> None:
        self._shared = shared
        self._phase = ""
        self._base: dict[str, int] = {}
        self._highest = _Highest({}, {})
        self._unwarmed = _Highest({}, {})
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
            self._shared.fold()
            self._base = dict(self._shared.gauge.now())
            self._unseen_before = self._shared.gauge.unseen()
            self._refusals = self._shared.gauge.refusals()
            self._highest, self._unwarmed = (_Highest(dict(self._base), dict(self._base)) for _ in range(2))
            self._phase = phase
            self._shared._windows.append(self)

    def pause(self) -> None:
        with self._shared._lock:
            self._shared.fold()
            self._shared._windows.remove(self)
            self._paused_at = self._shared.gauge.now()
            self._unseen_at_pause = self._shared.gauge.unseen()
            self._refusals_at_pause = self._shared.gauge.refusals()

    def resume(self) -> bool:
        """Goes on; what was allocated or released in the pause belongs to the base. True if that is anything."""
        with self._shared._lock:
            self._shared.fold()
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
        with self._shared._lock:
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

    def _raise_to(self, levels: Levels, warming: bool = False) -> None:
        self._warmed = self._warmed or warming
        self._highest.raise_to(levels, self._base, self._phase)
        if not warming:
            self._unwarmed.raise_to(levels, self._base, self._phase)


@dataclass
class _Highest:
    """Rises as the levels are told."""

    peak: dict[str, int]
    base_at_peak: dict[str, int]
    phases: dict[str, dict[str, int]] = field(default_factory=dict)

    def raise_to(self, levels: Levels, base: Levels, phase: str) -> None:
        of_phase = self.phases.setdefault(phase, {}) if phase else {}
        for kind, level in levels.items():
            of_phase[kind] = max(of_phase.get(kind, 0), level)
            if level > self.peak[kind]:
                self.peak[kind] = level
                self.base_at_peak[kind] = base[kind]

    def copied(self) -> Highest:
        phases = {name: dict(levels) for name, levels in self.phases.items()}
        return Highest(dict(self.peak), dict(self.base_at_peak), phases)
