"""Blocks, and the free ones of a pool in the order in which they are chosen."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from pytest_memleak.cards.allocator.statistics import Tally

if TYPE_CHECKING:
    from pytest_memleak.cards.allocator.expandable import ExpandableSegment

# A free block is one number, size first and address below it: lists of such numbers are sorted as the allocator
# chooses, and compare several times faster than tuples. Addresses have 48 bits on every CUDA platform.
ADDRESS_BITS = 48
ADDRESS = (1 << ADDRESS_BITS) - 1


class Block:
    """A part of a segment, in use or free; its neighbours are the blocks beside it in the same segment."""

    __slots__ = ("address", "asked", "born", "mapped", "next", "pool", "previous", "segment", "size", "used")

    def __init__(self, address: int, size: int, pool: Pool, segment: ExpandableSegment | None) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.segment = segment
        self.previous: Block | None = None
        self.next: Block | None = None
        self.used = False
        self.mapped = True

    # Set when a block is handed out, and when it is put among the free ones; not read before.
    asked: int
    born: int

    @property
    def key(self) -> int:
        return self.size << ADDRESS_BITS | self.address

    @property
    def split(self) -> bool:
        return self.previous is not None or self.next is not None

    def put_behind(self, other: Block) -> None:
        """Takes its place between `other` and what came after it."""
        self.previous, self.next = other, other.next
        if other.next is not None:
            other.next.previous = self
        other.next = self


class Pool:
    """The blocks of one stream that are small, or those that are large."""

    __slots__ = ("blocks", "free", "small", "stream", "tally", "unmapped")

    def __init__(self, small: bool, stream: int, tally: Tally, blocks: dict[int, Block]) -> None:
        self.small = small
        self.stream = stream
        self.tally = tally
        self.blocks = blocks
        """Every block of the card by its address, shared by all pools."""
        self.free: list[int] = []
        self.unmapped: list[int] = []
        """Addresses that expandable segments could map."""

    def free_blocks(self) -> list[Block]:
        return [self.blocks[key & ADDRESS] for key in self.free]

    def put(self, block: Block, age: int = 0) -> None:
        block.born = age
        insort(self.free, block.key)

    def take(self, block: Block) -> None:
        del self.free[bisect_left(self.free, block.key)]

    def put_unmapped(self, block: Block) -> None:
        insort(self.unmapped, block.address)

    def take_unmapped(self, block: Block) -> None:
        del self.unmapped[bisect_left(self.unmapped, block.address)]

    def merge(self, block: Block, neighbour: Block | None) -> Block:
        """Both as one block, where the neighbour is free and as mapped as `block` is; neither is among the free."""
        if neighbour is None or neighbour.used or neighbour.mapped != block.mapped:
            return block
        if neighbour.mapped:
            self.take(neighbour)
        else:
            self.take_unmapped(neighbour)
        first, second = (neighbour, block) if neighbour is block.previous else (block, neighbour)
        first.size += second.size
        first.next = second.next
        if second.next is not None:
            second.next.previous = first
        del self.blocks[second.address]
        return first
