"""What the simulated card's allocator says: read like a real card's, and a prediction all the same."""

from __future__ import annotations

import functools

from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.simulated.margins import Margins
from pytest_memleak.cards.simulated.unknowns import Unknowns
from pytest_memleak.meters.accelerator import AcceleratorMemory
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.meters.reading import PREDICTED, Levels


class SimulatedMemory(AcceleratorMemory):
    """The gauge of one simulated device."""

    how = PREDICTED

    # Not the real one's: that asks torch for counters which are there only while the card is.
    def __init__(self, allocator: Allocator, unknowns: Unknowns, margins: Margins) -> None:
        self.device = f"cuda:{allocator.device}"
        self._index = allocator.device
        self._statistics = allocator.statistics
        self._unknowns = unknowns
        self._margins = margins
        self._last_peak = 0
        self._stats = lambda index: allocator.memory_stats_as_nested_dict()
        self._reset = lambda index: allocator.statistics.forget_peaks()
        self._started = lambda: True
        self.fold = lambda: None
        allocator.statistics.before_reset = lambda: self.fold()

    def begin(self) -> None:
        """A reset by the program is heard of from the allocator itself."""

    def end(self) -> None:
        """As `begin`."""

    def now(self) -> Levels:
        # A timeline asks a thousand times a second, and all the statistics are sixty numbers.
        tally = self._statistics.all
        return {"allocated": tally.held, "requested": tally.asked, "reserved": tally.reserved}

    def take_peaks(self) -> Levels:
        peaks = super().take_peaks()
        self._last_peak = peaks["allocated"]
        return peaks

    def unseen_peak(self) -> int:
        """How much higher a card's peak may have been than that of the last `take_peaks`."""
        return max(0, self._margins.take(self._index) - self._last_peak)

    @property
    def unseen_is(self) -> str:
        """What that would be."""
        return str(self._margins)

    def blindness(self) -> str | None:
        return super().blindness() or self._unknowns.doubt()


@functools.cache
def simulated(allocator: Allocator, unknowns: Unknowns, margins: Margins) -> SharedGauge:
    memory = SimulatedMemory(allocator, unknowns, margins)
    gauge = SharedGauge(memory)
    memory.fold = gauge.fold
    return gauge
