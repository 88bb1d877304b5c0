"""A recorded run once more, on the emulation: every event and every figure beside the card's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_memleak.cards.allocator.addresses import Addresses
from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.allocator.refusal import CardFull, Refusal
from pytest_memleak.cards.allocator.settings import parse
from pytest_memleak.cards.allocator.trace import Action, Event, Trace

# What a program does; everything else in a trace is the allocator's answer to it.
_DONE_BY_PROGRAM = frozenset({Action.ALLOC, Action.FREE, Action.OOM, Action.EMPTY_CACHE, Action.RESET_PEAK, Action.CAP})
_MARKS = frozenset({Action.EMPTY_CACHE, Action.RESET_PEAK, Action.CAP})


@dataclass(frozen=True)
class Difference:
    index: int
    """Of the event in the trace, its marks left out."""
    card: Event | None
    emulated: Event | None


@dataclass(frozen=True)
class Replayed:
    emulated: dict[str, int]
    """The emulation's `memory_stats`."""
    card: dict[str, int]
    difference: Difference | None
    """The first event that is not the same, if any."""
    refusals: list[Refusal]

    @property
    def wrong_figures(self) -> dict[str, tuple[int | None, int | None]]:
        """What differs: the card's value, the emulation's."""
        names = sorted(self.emulated.keys() | self.card.keys())
        pairs = {name: (self.card.get(name), self.emulated.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


class _Recorded:
    """The addresses that the driver gave; what it would give is its own affair."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._taken = iter([event.address for event in events if event.action is Action.SEGMENT_ALLOC])
        self._mapped = [event.address for event in events if event.action is Action.SEGMENT_MAP]
        self._maps = 0

    # Where the emulation takes more than the card did, any address will do: the comparison of events names it.
    def take(self, size: int) -> int:
        return next(self._taken, 0)

    def give(self, address: int, size: int) -> None:
        pass

    def reserve(self, size: int) -> int:
        """Space is reserved when something is about to be mapped at its beginning."""
        return self._mapped[self._maps] if self._maps < len(self._mapped) else 0

    def follow(self, action: Action, address: int, size: int, stream: int) -> None:
        self._maps += action is Action.SEGMENT_MAP


def replay(trace: Trace) -> Replayed:
    """Does what the recorded program did; the emulation decides all but where the driver puts segments."""
    events = trace.events
    unknown = next((event for event in events if event.action in (Action.FREE_REQUESTED, Action.FREE_COMPLETED)), None)
    if unknown is not None:
        raise ValueError(f"the trace holds a release that waited for another stream ({unknown}): not emulated")
    addresses = _Recorded(events)
    allocator = _allocator(trace, addresses)
    allocator.observe(addresses.follow)
    answers: list[Event] = []
    allocator.observe(lambda action, address, size, stream: answers.append(Event(action, size, address, stream)))
    refusals = list(_driven(allocator, events))
    card = [_comparable(event) for event in events if event.action not in _MARKS]
    emulated = [_comparable(event) for event in answers]
    return Replayed(allocator.memory_stats(), dict(trace.header["stats"]), _first_difference(card, emulated), refusals)


def replay_in_own_space(trace: Trace) -> Allocator:
    """The same, with segments where the emulation itself would put them: what a prediction does."""
    allocator = _allocator(trace, None)
    list(_driven(allocator, trace.events))
    return allocator


def _allocator(trace: Trace, addresses: Addresses | None) -> Allocator:
    total, free = trace.header["total"], trace.header["free_at_start"]
    return Allocator(total, others=total - free, settings=parse(trace.header["settings"]), addresses=addresses)


def _driven(allocator: Allocator, events: Sequence[Event]) -> Iterator[Refusal]:
    # By the card's own addresses, since a run that took another turn must go on to be compared.
    placed: dict[int, int] = {}
    for event in events:
        if event.action in (Action.ALLOC, Action.OOM):
            try:
                placed[event.address] = allocator.alloc(event.size, event.stream)
            except CardFull as refused:
                yield dataclasses.replace(refused.refusal, free=event.address)
        elif event.action is Action.FREE and event.address in placed:
            allocator.free(placed.pop(event.address))
        elif event.action is Action.EMPTY_CACHE:
            allocator.empty_cache()
        elif event.action is Action.RESET_PEAK:
            allocator.reset_peak_memory_stats()
        elif event.action is Action.CAP:
            allocator.cap = event.size


def _comparable(event: Event) -> Event:
    """Without what a refusal says of the card's free memory, and a release of its size: others decide these."""
    if event.action is Action.OOM:
        return dataclasses.replace(event, address=0)
    return dataclasses.replace(event, size=0) if event.action is Action.FREE else event


def _first_difference(card: Sequence[Event], emulated: Sequence[Event]) -> Difference | None:
    for index in range(max(len(card), len(emulated))):
        one = card[index] if index < len(card) else None
        other = emulated[index] if index < len(emulated) else None
        if one != other:
            return Difference(index, one, other)
    return None
