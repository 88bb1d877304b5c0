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
        self._rising = False
        """The level is at its peak: what is alive is noted before the first step down."""
        self._live: dict[int, tuple[int, int]] = {}
        """By address: the number of its place, and its bytes."""
        self._held: dict[int, list[int]] = {}
        """Bytes and blocks of each place, now."""
        self._at_peak: dict[int, tuple[int, int]] = {}
        self._stop: Callable[[], None] | None = None

    def begin(self, smallest: int = 0) -> None:
        self._smallest = smallest
        self._stop = self._allocator.observe(self._see, smallest)
        self._allocator.statistics.before_forgetting = self._notice
        self.resume()

    def pause(self) -> None:
        self._notice()
        self._noticing = False

    def resume(self) -> None:
        self._noticing = True
        self._notice()

    def end(self) -> None:
        if self._stop is not None:
            self._notice()
            self._allocator.statistics.before_forgetting = lambda: None
            self._stop()
            self._stop = None

    def read(self) -> Recorded:
        if self._stop is not None:
            self._notice()
        held = tuple(Held(self._places[number], *amounts) for number, amounts in self._at_peak.items() if amounts[1])
        return Recorded(self.peaks["allocated"], held, None if self._smallest else 0, self._smallest)

    def watch(self, reached: Reached | None, level: int = NEVER) -> None:
        if reached is None:
            self._simulation.alarms.pop(self._index, None)
        else:
            self._simulation.alarms[self._index] = Alarm(reached, level)

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        try:
            block = self._simulation.block_of(tensor)
        except RuntimeError:
            return None  # a wrapper, such as a DTensor: the memory is that of a tensor inside
        if block is None or block[0] is not self._allocator:
            return None
        known = self._live.get(block[1])
        return None if known is None else self._places[known[0]]

    def _see(self, action: Action, address: int, size: int, stream: int) -> None:
        if action is Action.ALLOC:
            self._allocated(address)
        elif action is Action.FREE:
            self._freed(address)
        elif action is Action.OOM:
            self.refused += 1

    def _allocated(self, address: int) -> None:
        size = self._allocator.size_of(address)
        if size < self._smallest:
            return
        top = self._allocator.statistics.all.held_peak
        if self._noticing and (self._rising or top > self.peaks["allocated"]):
            self._rising = self._allocator.allocated == top
            if not self._rising:
                self._notice()
        number = self._places.here()
        self._live[address] = number, size
        held = self._held.setdefault(number, [0, 0])
        held[0] += size
        held[1] += 1

    def _freed(self, address: int) -> None:
        found = self._live.get(address)
        if found is not None:
            self._notice()
            del self._live[address]
            number, size = found
            held = self._held[number]
            held[0] -= size
            held[1] -= 1

    def _notice(self) -> None:
        """Whatever rose since the last call; blocks that are too small to be told of may have done it."""
        if not self._noticing:
            return
        tops, peaks = self._allocator.statistics.all, self.peaks
        peaks["requested"] = max(peaks["requested"], tops.asked_peak)
        peaks["reserved"] = max(peaks["reserved"], tops.reserved_peak)
        if self._rising or tops.held_peak > peaks["allocated"]:
            peaks["allocated"] = max(peaks["allocated"], tops.held_peak)
            self._at_peak = {number: (held, blocks) for number, (held, blocks) in self._held.items()}
            self._rising = False
