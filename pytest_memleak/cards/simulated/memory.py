"""What the simulated card's allocator says: read like a real card's, and a prediction all the same."""

from __future__ import annotations

import functools

from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.meters.accelerator import AcceleratorMemory
from pytest_memleak.meters.gauge import PREDICTED, SharedGauge


class SimulatedMemory(AcceleratorMemory):
    """The gauge of one simulated device."""

    how = PREDICTED

    # Not the real one's: that asks torch for counters which are there only while the card is.
    def __init__(self, simulation: Simulation, index: int) -> None:
        self.device = f"cuda:{index}"
        self._index = index
        self._simulation = simulation
        self._stats = lambda device: simulation.allocator(device).memory_stats_as_nested_dict()
        self._reset = simulation.reset_peak
        self._started = lambda: True
        self.fold = lambda: None

    def blindness(self) -> str | None:
        return self._simulation.unknowns.doubt()


@functools.cache
def simulated(simulation: Simulation, index: int) -> SharedGauge:
    memory = SimulatedMemory(simulation, index)
    gauge = SharedGauge(memory)
    memory.fold = gauge.fold
    return gauge
