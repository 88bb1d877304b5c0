"""What every source of readings offers, and the windows that share one source.

A *gauge* stands for one place where memory can be: a device's allocator, torch's CPU allocator, the process's committed
memory. It knows two numbers, the level now and the highest level since it was last asked. Several *windows* can be open
on one gauge at a time (a test, and `memory.measure(...)` inside it), and the program itself may reset the allocator's
peak: so nobody reads the gauge's peak directly. Every reset first folds the peak into all open windows.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Levels = Mapping[str, int]
"""Bytes by kind: ``{"allocated": …, "reserved": …}``."""

PREDICTED = "predicted"
"""How the numbers of a simulated card are got."""


_UNSEEN = "memory not allocated by torch"
_SEGMENT = 20 * 1024**2


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


@dataclass(frozen=True)
class Reading:
    """What one window saw on one gauge. Bytes are absolute: what lived before is in them, as `base`."""

    device: str
    how: str
    base: Levels
    """Held when the window opened, and by wider fixtures set up since."""
    peak: Levels
    base_at_peak: Levels
    end: Levels
    phases: Mapping[str, Levels] = field(default_factory=dict)
    """The peak of each named stretch of the window: ``setup``, ``call``."""
    refusals: int = 0
    unseen: int = 0
    """Bytes alive at the end that the gauge never saw allocated; the true peak is at most ``peak + unseen``."""
    unseen_before: int = 0
    """Those of them that were there when the window opened, or that wider fixtures brought since."""
    unseen_peak: int = 0
    """The most of them at a time: also of those that are gone, but for mapped files."""
    mapped_peak: int = 0
    """The most of those in mapped files at a time."""
    unseen_is: str = _UNSEEN
    """What that is, in words."""
    blind: str | None = None

    def base_of_peak(self, kind: str) -> int:
        """What was held before: in the highest level for certain."""
        return self.base_at_peak[kind] + self.there_throughout

    def certain_peak(self, kind: str) -> int:
        """The highest level without what may or may not have been there at that time."""
        return self.peak[kind] + self.there_throughout

    def possible_peak(self, kind: str) -> int:
        """The highest level if everything that nobody saw being allocated was there at that time."""
        hidden = max(self.unseen, self.unseen_peak, self.there_throughout)
        if hidden and kind == "reserved" and self.how == PREDICTED:
            hidden = 2 * hidden + _SEGMENT  # blocks that come and go leave segments that others do not fit into
        return self.peak[kind] + hidden

    def told_peak(self, kind: str) -> int:
        """The one to be shown: the highest possible, but for predictions, whose margin is told beside them."""
        return self.certain_peak(kind) if self.how == PREDICTED else self.possible_peak(kind)

    @property
    def swayed(self) -> bool:
        """The program may have taken another way than with a real card: more or less memory, nobody knows."""
        return self.how == PREDICTED and self.blind is not None

    @property
    def let_go_of(self) -> int:
        """Bytes in mapped files that came and went: in neither peak, because their pages are nobody's."""
        return max(0, self.mapped_peak - max(self.unseen, self.unseen_peak))

    @property
    def there_throughout(self) -> int:
        """Bytes that nobody saw being allocated, and that were there from the start to the end."""
        return min(self.unseen, self.unseen_before)

    def grown(self, kind: str) -> int:
        """Held at the end over what was held at the start, whether or not torch allocated it."""
        return self.end[kind] + self.unseen - self.base[kind] - self.unseen_before


class SharedGauge:
    """One gauge and the windows open on it. All resets of the peak go through `fold`."""

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge
        self._windows: list[Window] = []
        self._open = 0  # windows that are open, paused ones too
        # A program's thread may reset the peak while the main thread opens a window.
        self._lock = threading.RLock()

    def fold(self) -> None:
        """Gives the peak since the last fold to every running window, and starts it anew."""
        with self._lock:
            peaks, unseen, mapped = self.gauge.take_peaks(), self.gauge.unseen_peak(), self.gauge.mapped_peak()
            for window in self._windows:
                window._raise_to(peaks)
                window._unseen_peak = max(window._unseen_peak, unseen)
                window._mapped_peak = max(window._mapped_peak, mapped)

    def window(self) -> Window:
        return Window(self)


class Window:
    """A stretch of time on one gauge, with pauses: the set-up of wider fixtures is not the test's."""

    def __init__(self, shared: SharedGauge) -> None:
        self._shared = shared
        self._phase = ""
        self._phases: dict[str, dict[str, int]] = {}
        self._base: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._base_at_peak: dict[str, int] = {}
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
            self._peak = dict(self._base)
            self._base_at_peak = dict(self._base)
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
                peak=dict(self._peak),
                base_at_peak=dict(self._base_at_peak),
                end=dict(gauge.now()),
                phases={name: dict(levels) for name, levels in self._phases.items()},
                refusals=gauge.refusals() - self._refusals,
                unseen=gauge.unseen(),
                unseen_before=self._unseen_before,
                unseen_peak=self._unseen_peak,
                mapped_peak=self._mapped_peak,
                unseen_is=getattr(gauge, "unseen_is", _UNSEEN),
                blind=gauge.blindness(),
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

    def _raise_to(self, levels: Levels) -> None:
        phase = self._phases.setdefault(self._phase, {}) if self._phase else {}
        for kind, level in levels.items():
            phase[kind] = max(phase.get(kind, 0), level)
            if level > self._peak[kind]:
                self._peak[kind] = level
                self._base_at_peak[kind] = self._base[kind]
