"""What one window saw on one gauge: levels by kind of memory, and which of them are certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

Levels = Mapping[str, int]
"""Bytes by kind: ``{"allocated": …, "reserved": …}``."""

COMMITTED = "committed"
"""The kind of memory that a system has given to a process, because it was written to."""

PREDICTED = "predicted"
"""How the numbers of a simulated card are got."""

UNSEEN = "memory not allocated by torch"
_SEGMENT = 20 * 1024**2


@dataclass(frozen=True)
class Highest:
    """The highest levels of a window, or of a part of it."""

    peak: Levels
    base_at_peak: Levels
    phases: Mapping[str, Levels]


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
    unseen_is: str = UNSEEN
    """What that is, in words."""
    blind: str | None = None
    unwarmed: Highest | None = None
    """Without what warm-ups of the allocator asked for while they ran; None where there was no warm-up."""

    def without_warmup(self) -> Reading:
        """As if no warm-up had asked for anything. What one has reserved stays reserved, and is in that peak."""
        if self.unwarmed is None:
            return self
        rest = self.unwarmed
        return replace(self, peak=rest.peak, base_at_peak=rest.base_at_peak, phases=rest.phases, unwarmed=None)

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
