"""Segments that grow: address space for the whole card, of which pieces are mapped as they are needed."""

from __future__ import annotations

from collections.abc import Callable

from pytest_memleak.cards.allocator.blocks import Block, Pool


class ExpandableSegment:
    """A range of addresses in pieces of 2 MiB (small pool) or 20 MiB (large pool)."""

    __slots__ = ("address", "piece", "size")

    def __init__(self, address: int, piece: int, size: int) -> None:
        self.address = address
        self.piece = piece
        self.size = size

    def covering(self, address: int, size: int) -> int:
        """The bytes of the pieces that `size` bytes from a piece's start on need."""
        return -(-(address + size - self.address) // self.piece) * self.piece - (address - self.address)

    def within(self, address: int, size: int) -> tuple[int, int]:
        """Address and bytes of the pieces that lie wholly in this range."""
        begin = -(-(address - self.address) // self.piece)
        end = (address + size - self.address) // self.piece
        return self.address + begin * self.piece, max(end - begin, 0) * self.piece


def space_for(total: int, piece: int) -> int:
    """The address space that is reserved: an eighth more than the card, in whole pieces."""
    return -(-(total + total // 8) // piece) * piece


def with_space(pool: Pool, size: int) -> Block | None:
    """The lowest run of free blocks, mapped or not, that begins at or just before an unmapped one and is big enough."""
    for address in pool.unmapped:
        block = pool.blocks[address]
        if block.previous is not None and not block.previous.used:
            block = block.previous
        room = 0
        following: Block | None = block
        while room < size and following is not None and not following.used:
            room += following.size
            following = following.next
        if room >= size:
            return block
    return None


def map_part(block: Block, size: int, grow: Callable[[Block, int], bool]) -> Block | None:
    """Maps the first `size` bytes of an unmapped block and joins them to their neighbours, among the free ones.

    `grow` is told the block and how much of it is mapped; None where it refuses.
    """
    pool, segment = block.pool, block.segment
    assert segment is not None
    mapped = segment.covering(block.address, size)
    if not grow(block, mapped):
        return None
    pool.take_unmapped(block)
    block.mapped = True
    if mapped < block.size:
        rest = Block(block.address + mapped, block.size - mapped, pool, segment)
        rest.mapped = False
        rest.put_behind(block)
        block.size = mapped
        pool.blocks[rest.address] = rest
        pool.put_unmapped(rest)
    whole = pool.merge(pool.merge(block, block.previous), block.next)
    pool.put(whole)
    return whole


def unmap(block: Block, shrink: Callable[[Block, int, int], None]) -> Block | None:
    """Gives back the whole pieces of a free block; returns what is unmapped now, or None if the block has none.

    `shrink` is told which bytes were given back.
    """
    pool, segment = block.pool, block.segment
    assert segment is not None
    address, size = segment.within(block.address, block.size)
    if size == 0:
        return None
    pool.take(block)
    before, after = address - block.address, block.address + block.size - (address + size)
    if before:
        middle = Block(address, size, pool, segment)
        middle.put_behind(block)
        block.size = before
        pool.blocks[address] = middle
        pool.put(block, block.born)
    else:
        middle = block
        middle.size = size
    if after:
        rest = Block(address + size, after, pool, segment)
        rest.put_behind(middle)
        pool.blocks[rest.address] = rest
        pool.put(rest, block.born)
    middle.mapped = False
    middle = pool.merge(pool.merge(middle, middle.previous), middle.next)
    pool.put_unmapped(middle)
    shrink(block, address, size)
    return middle
