"""Where on the card segments lie.

Of free blocks of one size the allocator takes the one with the lowest address, so what the driver answers shows in
what is reused, and with that in the figures.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
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

    __slots__ = ("begin", "end", "holes")

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.holes = [(begin, end)]

    def take(self, size: int) -> int | None:
        fitting = [(end - begin, begin, end) for begin, end in self.holes if end - begin >= size]
        if not fitting:
            return None
        _, begin, end = min(fitting)
        index = self.holes.index((begin, end))
        self.holes[index : index + 1] = [(begin + size, end)] if end - begin > size else []
        return begin

    def give(self, begin: int, size: int) -> None:
        end = begin + size
        index = bisect_left(self.holes, (begin, end))
        if index < len(self.holes) and self.holes[index][0] == end:
            end = self.holes.pop(index)[1]
        if index and self.holes[index - 1][1] == begin:
            index -= 1
            begin = self.holes.pop(index)[0]
        self.holes.insert(index, (begin, end))


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
        for size, used in CONTEXT:
            self._new_chunk(size).take(used)

    def take(self, size: int) -> int:
        # A dictionary keeps the order of creation; a segment is rare enough to look at all chunks.
        for chunk in reversed(self._chunks.values()):
            if chunk.holes:
                address = chunk.take(size)
                if address is not None:
                    return address
        address = self._new_chunk(-(-size // CHUNK) * CHUNK).take(size)
        assert address is not None
        return address

    def give(self, address: int, size: int) -> None:
        if address < LOWEST:
            return  # an expandable segment's space is not used again
        chunk = self._chunks[self._begins[bisect_right(self._begins, address) - 1]]
        chunk.give(address, size)
        if chunk.holes == [(chunk.begin, chunk.end)]:
            del self._chunks[chunk.begin]
            self._begins.remove(chunk.begin)
            self._close(chunk.begin, chunk.end)

    def reserve(self, size: int) -> int:
        address = self._reserved
        self._reserved += -(-size // CHUNK) * CHUNK
        return address

    def _new_chunk(self, size: int) -> Chunk:
        begin, end = next(gap for gap in reversed(self._gaps) if gap[1] - gap[0] > size)
        self._gaps[self._gaps.index((begin, end))] = (begin, end - size)
        chunk = self._chunks[end - size] = Chunk(end - size, end)
        insort(self._begins, chunk.begin)
        return chunk

    def _close(self, begin: int, end: int) -> None:
        """The gap between these, and the gaps beside it, are one."""
        for gap in [gap for gap in self._gaps if gap[1] == begin or gap[0] == end]:
            self._gaps.remove(gap)
            begin, end = min(begin, gap[0]), max(end, gap[1])
        insort(self._gaps, (begin, end))
