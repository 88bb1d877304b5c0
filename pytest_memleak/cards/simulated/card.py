"""The simulated card, as a card that tests run on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.capping import enforced
from pytest_memleak.cards.simulated.features import reason_of
from pytest_memleak.cards.simulated.memory import simulated
from pytest_memleak.cards.simulated.profiles import MOST_MEMORY
from pytest_memleak.cards.simulated.recording import SimulatedRecording
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.errors import Unavailable
from pytest_memleak.events.recording import Recording
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.plan import Cap
from pytest_memleak.records.record import CardInfo
from pytest_memleak.room import Room, of_cuda


class SimulatedCard:
    """A card that is not there. It has to be on while a test runs, which is not this object's business."""

    backend = "simulated"
    device = "cuda:0"

    def __init__(self, simulation: Simulation, *, named: bool) -> None:
        self._simulation = simulation
        self._named = named
        """Somebody asked for this card: it stays as big as it is. Without a name, it is as big as a cap wants it."""

    @property
    def total(self) -> int:
        return self._simulation.cards[0].total

    def begin(self) -> None:
        self._simulation.unknowns.reset()
        self._simulation.presumptions.reset()
        self._simulation.margins.reset()
        self._simulation.size_workspaces()

    def gauges(self) -> list[SharedGauge]:
        made = self._simulation
        return [simulated(made.allocator(index), made.unknowns, made.margins) for index in range(len(made.cards))]

    def room(self, index: int, cap: Cap | None) -> Room | None:
        return of_cuda(index, cap)

    def recordings(self) -> list[Recording]:
        return [SimulatedRecording(self._simulation, index) for index in range(len(self._simulation.cards))]

    def driver_gauges(self) -> list[SharedGauge]:
        return []

    @contextlib.contextmanager
    def capped(self, cap: Cap) -> Iterator[None]:
        allocators = [self._simulation.allocator(index) for index in range(len(self._simulation.cards))]
        before = [allocator.cap for allocator in allocators]
        with self._as_big_as(cap):
            try:
                with enforced(cap, range(len(allocators))) as rooms, self._simulation.telling(cap, rooms):
                    yield
            finally:
                # torch's own way back is a cap of the whole card, which refusals would go on to mention.
                for allocator, own in zip(allocators, before, strict=True):
                    allocator.cap = own

    def doubt(self, error: BaseException | None = None) -> str | None:
        return self._simulation.unknowns.doubt() or (reason_of(error) if error is not None else None)

    def remarks(self) -> tuple[str, ...]:
        simulation = self._simulation
        return *simulation.unknowns.remarks(), *simulation.presumptions.remarks()

    def info(self, cap: Cap | None) -> CardInfo:
        card, count = self._simulation.cards[0], len(self._simulation.cards)
        total = card.total if cap is None or self._named else max(card.total, cap.bytes)
        told = "told to the program" if cap and cap.told else "not told to the program"
        return CardInfo(
            backend=self.backend,
            name=card.name,
            devices=tuple(f"cuda:{index}" for index in range(count)),
            total=total,
            cap=cap.bytes if cap else None,
            enforcement=f"enforced on reserved memory and {told}" if cap else "",
        )

    @contextlib.contextmanager
    def _as_big_as(self, cap: Cap) -> Iterator[None]:
        """A card that nobody named is larger than usual where a cap wants it so."""
        cards = self._simulation.cards
        if cap.bytes > MOST_MEMORY:
            raise Unavailable(f"{cap.source}: a simulated card has {format_size(MOST_MEMORY)} at most")
        if self._named or cap.bytes <= min(card.total for card in cards):
            yield
            return
        self._resize([max(card.total, cap.bytes) for card in cards])
        try:
            yield
        finally:
            self._simulation.empty_cache()
            self._resize([card.total for card in cards])

    def _resize(self, totals: list[int]) -> None:
        simulation = self._simulation
        simulation.cards = tuple(
            replace(card, total=total) for card, total in zip(simulation.cards, totals, strict=True)
        )
        for index, total in enumerate(totals):
            simulation.allocator(index).total = total
