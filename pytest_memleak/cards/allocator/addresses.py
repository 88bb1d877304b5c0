"""Where on the card segments lie.

Of free blocks of one size the allocator takes the one with the lowest address, so what the driver answers shows in
what is reused, and with that in the figures.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right, insort
from operator import itemgetter
from typing import Protocol

from pytest_memleak.cards.allocator.rules import MIB

# Expandable segments have their space elsewhere, each above the one before.
EXPANDABLE = 0x3_0200_0000
CHUNK = 32 * MIB
TOP = 0x7FD0_9800_0000
LOWEST = 0x7F00_0000_0000
# What the context takes before the program's first segment, as (chunk, used of it).
CONTEXT = ((32 * MIB, 8 * MIB), (64 * MIB, 64 * MIB), (416 * MIB, 414 * MIB))


class Addresses(Protocol):
    def take(self, size: int) -> int:
        """The address of a new segment."""

    def give(self, address: int, size: int) -> None:
        """That segment is gone, or that reserved space."""

    def reserve(self, size: int) -> int:
        """Address space for an expandable segment, which is mapped later and piece by piece."""


class Chunk:
    """Space that the driver asked of the system; a segment lies at the beginning of the smallest hole that fits it."""

    __slots__ = ("begin", "end", "holes", "number")

    def __init__(self, begin: int, end: int, number: int) -> None:
        self.begin, self.end = begin, end
        self.number = number
        """The newest has the highest."""
        self.holes = [(begin, end)]

    @property
    def room(self) -> int:
        """The largest segment that fits."""
        return max((end - begin for begin, end in self.holes), default=0)

    def take(self, size: int) -> int:
        _, begin, end = min((end - begin, begin, end) for begin, end in self.holes if end - begin >= size)
        index = self.holes.index((begin, end))
        self.holes[index : index + 1] = [(begin + size, end)] if end - begin > size else []
        return begin

    def give(self, begin: int, size: int) -> None:
        _join(self.holes, begin, begin + size)


class Driver:
    """What the driver of an H200 was seen to do, under Linux.

    It takes space in multiples of 32 MiB, from high addresses downwards, out of the highest gap that is larger than
    what it takes; a segment goes to the newest chunk with room for it; a chunk without segments is given up. What
    kernels and libraries make the driver take for themselves while a program runs is not known here.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}
        self._begins: list[int] = []
        self._gaps: list[tuple[int, int]] = [(LOWEST, TOP)]
        self._reserved = EXPANDABLE
        self._made = itertools.count()
        self._by_room: dict[int, list[tuple[int, Chunk]]] = {}
        """Chunks with their numbers, the newest last, by the room they have: of chunks there are many, of rooms few."""
        for size, used in CONTEXT:
            self._take(self._new_chunk(size), used)

    def take(self, size: int) -> int:
        newest = max((chunks[-1] for room, chunks in self._by_room.items() if room >= size), default=None)
        return self._take(newest[1] if newest else self._new_chunk(-(-size // CHUNK) * CHUNK), size)

    def give(self, address: int, size: int) -> None:
        if address < LOWEST:
            return  # an expandable segment's space is not used again
        place = bisect_right(self._begins, address) - 1
        chunk = self._chunks[self._begins[place]]
        self._forget_room(chunk)
        chunk.give(address, size)
        if chunk.holes != [(chunk.begin, chunk.end)]:
            self._note_room(chunk)
            return
        del self._chunks[chunk.begin], self._begins[place]
        _join(self._gaps, chunk.begin, chunk.end)

    def reserve(self, size: int) -> int:
        address = self._reserved
        self._reserved += -(-size // CHUNK) * CHUNK
        return address

    def _new_chunk(self, size: int) -> Chunk:
        begin, end = next(gap for gap in reversed(self._gaps) if gap[1] - gap[0] > size)
        self._gaps[self._gaps.index((begin, end))] = (begin, end - size)
        chunk = self._chunks[end - size] = Chunk(end - size, end, next(self._made))
        insort(self._begins, chunk.begin)
        self._note_room(chunk)
        return chunk

    def _take(self, chunk: Chunk, size: int) -> int:
        self._forget_room(chunk)
        address = chunk.take(size)
        self._note_room(chunk)
        return address

    def _note_room(self, chunk: Chunk) -> None:
        if room := chunk.room:
            insort(self._by_room.setdefault(room, []), (chunk.number, chunk))

    def _forget_room(self, chunk: Chunk) -> None:
        if room := chunk.room:
            chunks = self._by_room[room]
            del chunks[bisect_left(chunks, chunk.number, key=itemgetter(0))]
            if not chunks:
                del self._by_room[room]


def _join(spans: list[tuple[int, int]], begin: int, end: int) -> None:
    """One more span, which is one with those beside it."""
    place = bisect_left(spans, (begin, end))
    if place < len(spans) and spans[place][0] == end:
        end = spans.pop(place)[1]
    if place and spans[place - 1][1] == begin:
        place -= 1
        begin = spans.pop(place)[0]
    spans.insert(place, (begin, end))
