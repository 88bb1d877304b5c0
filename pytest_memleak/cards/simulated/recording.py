"""What is alive on a simulated card at its peak, by the place that allocated it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pytest_memleak.cards.allocator.trace import Action
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.events.places import Place, Places
from pytest_memleak.events.recording import NEVER, Alarm, Held, Reached, Recorded


class SimulatedRecording:
    """Observes an allocator: keeps the highest levels, whatever the program resets, and what was alive then."""

    def __init__(self, simulation: Simulation, index: int = 0) -> None:
        self.device = f"cuda:{index}"
        self.peaks = dict.fromkeys(("requested", "allocated", "reserved"), 0)
        self.refused = 0
        self._simulation = simulation
        self._index = index
        self._allocator = simulation.allocator(index)
        self._places = Places()
        self._smallest = 0
        self._noticing = False
        self._live: dict[int, tuple[int, int]] = {}
        """By address: the number of its place, and its bytes."""
        self._held: dict[int, list[int]] = {}
        """Bytes and blocks of each place, now."""
        self._at_peak: dict[int, tuple[int, int]] = {}
        self._rising = True
        self._stop: Callable[[], None] | None = None

    def begin(self, smallest: int = 0) -> None:
        self._smallest = smallest
        self._stop = self._allocator.observe(self._see)
        self.resume()

    def pause(self) -> None:
        self._settle()
        self._noticing = False

    def resume(self) -> None:
        self._noticing = True
        self._notice()

    def end(self) -> None:
        if self._stop is not None:
            self._stop()
            self._stop = None

    def read(self) -> Recorded:
        self._settle()
        found = dict(self._at_peak)
        small, _ = found.pop(Places.SMALL, (0, 0))
        held = tuple(Held(self._places[number], *amounts) for number, amounts in found.items() if amounts[1])
        return Recorded(self.peaks["allocated"], held, small, self._smallest)

    def watch(self, reached: Reached | None, level: int = NEVER) -> None:
        if reached is None:
            self._simulation.alarms.pop(self._index, None)
        else:
            self._simulation.alarms[self._index] = Alarm(reached, level)

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        block = self._simulation.block_of(tensor)
        if block is None or block[0] is not self._allocator:
            return None
        number, _ = self._live.get(block[1], (Places.SMALL, 0))
        return None if number == Places.SMALL else self._places[number]

    def _see(self, action: Action, address: int, size: int, stream: int) -> None:
        if action is Action.ALLOC:
            self._allocated(address)
        elif action is Action.FREE:
            self._freed(address)
        elif action is Action.OOM:
            self.refused += 1

    def _allocated(self, address: int) -> None:
        size = self._allocator.size_of(address)
        number = self._places.here() if size >= self._smallest else Places.SMALL
        self._live[address] = number, size
        held = self._held.setdefault(number, [0, 0])
        held[0] += size
        held[1] += 1
        if self._noticing:
            self._notice()

    def _freed(self, address: int) -> None:
        self._settle()
        found = self._live.pop(address, None)
        if found is not None:
            number, size = found
            held = self._held[number]
            held[0] -= size
            held[1] -= 1

    def _notice(self) -> None:
        allocator, peaks = self._allocator, self.peaks
        peaks["requested"] = max(peaks["requested"], allocator.requested)
        peaks["reserved"] = max(peaks["reserved"], allocator.reserved)
        if allocator.allocated > peaks["allocated"]:
            peaks["allocated"] = allocator.allocated
            self._rising = True

    def _settle(self) -> None:
        """Notes what is alive at a peak: not at every step on the way up, but before the first step down."""
        if self._rising:
            self._at_peak = {number: (held, blocks) for number, (held, blocks) in self._held.items()}
            self._rising = False
