"""What the simulated card's allocator says: read like a real card's, and a prediction all the same."""

from __future__ import annotations

import functools

from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.simulated.unknowns import Unknowns
from pytest_memleak.meters.accelerator import AcceleratorMemory
from pytest_memleak.meters.gauge import PREDICTED, SharedGauge


class SimulatedMemory(AcceleratorMemory):
    """The gauge of one simulated device."""

    how = PREDICTED

    # Not the real one's: that asks torch for counters which are there only while the card is.
    def __init__(self, allocator: Allocator, unknowns: Unknowns) -> None:
        self.device = f"cuda:{allocator.device}"
        self._index = allocator.device
        self._unknowns = unknowns
        self._stats = lambda index: allocator.memory_stats_as_nested_dict()
        self._reset = lambda index: allocator.statistics.forget_peaks()
        self._started = lambda: True
        self.fold = lambda: None
        allocator.statistics.before_reset = lambda: self.fold()

    def begin(self) -> None:
        """A reset by the program is heard of from the allocator itself."""

    def end(self) -> None:
        """As `begin`."""

    def blindness(self) -> str | None:
        return super().blindness() or self._unknowns.doubt()


@functools.cache
def simulated(allocator: Allocator, unknowns: Unknowns) -> SharedGauge:
    memory = SimulatedMemory(allocator, unknowns)
    gauge = SharedGauge(memory)
    memory.fold = gauge.fold
    return gauge
