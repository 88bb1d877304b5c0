"""What the allocator keeps of the card: segments taken, cached, given back, and refusals when there are none left.

The part that runs rarely; `Allocator` has what every allocation and every release goes through.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from pytest_memleak.cards.allocator import expandable
from pytest_memleak.cards.allocator.addresses import Addresses, Driver
from pytest_memleak.cards.allocator.blocks import ADDRESS, ADDRESS_BITS, Block, Pool
from pytest_memleak.cards.allocator.refusal import CardFull, Refusal, process_in_words
from pytest_memleak.cards.allocator.rules import SMALL_SEGMENT, UNLIMITED, segment_for
from pytest_memleak.cards.allocator.settings import Settings
from pytest_memleak.cards.allocator.statistics import Statistics
from pytest_memleak.cards.allocator.trace import Action

Observer = Callable[[Action, int, int, int], None]
"""Told what happened, the address, the size and the stream; of an allocation the size that was requested."""


class Reserve:
    def __init__(
        self,
        total: int,
        *,
        cap: int | None,
        others: int,
        context: int | None,
        settings: Settings | None,
        addresses: Addresses | None,
        device: int,
    ) -> None:
        self.total = total
        self.others = others
        self.context = context
        self.device = device
        self.settings = settings = settings or Settings()
        self.cap = int(settings.fraction * total) if cap is None and settings.fraction is not None else cap
        self.statistics = Statistics(settings.max_split)
        self._addresses = addresses or Driver()
        self._blocks: dict[int, Block] = {}
        self._pools: dict[int, tuple[Pool, Pool]] = {}
        self._age = 0
        self._observers: list[Observer] = []

    @property
    def reserved(self) -> int:
        return self.statistics.all.reserved

    @property
    def free_on_card(self) -> int:
        """What `torch.cuda.mem_get_info()` calls free; the cap does not show in it."""
        return max(self.total - self.others - self.reserved, 0)

    def tell(self, action: Action, address: int, size: int, stream: int) -> None:
        for observer in self._observers:
            observer(action, address, size, stream)

    def pools_of(self, stream: int) -> tuple[Pool, Pool]:
        """The small and the large one."""
        if stream not in self._pools:
            self._pools[stream] = (
                Pool(True, stream, self.statistics.small, self._blocks),
                Pool(False, stream, self.statistics.large, self._blocks),
            )
        return self._pools[stream]

    def cached(self, pool: Pool, need: int) -> Block | None:
        """The smallest free block that may be used for `need` bytes, no longer among the free ones."""
        if self._collects and not pool.small:
            self._age += 1
        free, index = pool.free, bisect_left(pool.free, need << ADDRESS_BITS)
        if index == len(free):
            return None
        block = self._blocks[free[index] & ADDRESS]
        # A block that can grow counts as large as it can become.
        while block.segment is not None and index + 1 < len(free):
            other = self._blocks[free[index + 1] & ADDRESS]
            if _with_growth(other) >= _with_growth(block):
                break
            block, index = other, index + 1
        max_split = self.settings.max_split
        if need < max_split <= block.size or (need >= max_split and block.size >= need + self.settings.max_extra):
            return None
        del free[index]
        return block

    def new_block(self, pool: Pool, need: int) -> Block:
        """A block of a new segment, if need be after cached ones were given back; raises CardFull."""
        segment = segment_for(need, self.settings.large_segment)
        if self._collects:
            self._collect()
        block = self._taken(pool, need, segment)
        if block is None and self._give_oversize(pool, need):
            block = self._taken(pool, need, segment)
        if block is None:
            self.flush()
            self.statistics.retries += 1
            block = self._taken(pool, need, segment)
        if block is not None:
            return block
        self.statistics.refusals += 1
        self.tell(Action.OOM, self.free_on_card, need, pool.stream)
        raise CardFull(
            Refusal(
                asked=segment,
                total=self.total,
                free=self.free_on_card,
                cap=self.cap,
                allocated=self.statistics.all.held,
                reserved=self.reserved,
                device=self.device,
                processes="" if self.context is None else process_in_words(self.context + self.reserved),
            )
        )

    def flush(self) -> None:
        """Gives back all that is wholly free."""
        self.statistics.flushes += 1
        for kind in (1, 0):
            for _, pools in sorted(self._pools.items()):
                self._give_free(pools[kind])

    @property
    def _collects(self) -> bool:
        return bool(self.settings.collect_above) and self.cap is not None

    def _taken(self, pool: Pool, need: int, segment: int) -> Block | None:
        """A segment of the card's memory as one block; None where the cap or the card has no room for it."""
        if self.cap is not None and self.reserved + segment > self.cap:
            return None
        if self.settings.expandable:
            return self._expanded(pool, need)
        if segment > self.free_on_card:
            return None
        address = self._addresses.take(segment)
        block = self._blocks[address] = Block(address, segment, pool, None)
        self._count_segment(block, 1)
        self.tell(Action.SEGMENT_ALLOC, address, segment, pool.stream)
        return block

    def _give(self, block: Block) -> None:
        block.pool.take(block)
        del self._blocks[block.address]
        self._addresses.give(block.address, block.size)
        self._count_segment(block, -1)
        self.tell(Action.SEGMENT_FREE, block.address, block.size, block.pool.stream)

    def _count_segment(self, block: Block, sign: int) -> None:
        self.statistics.add(block.pool.tally, "segments", sign)
        self._count_reserved(block.pool, sign * block.size)
        if block.size >= self.settings.max_split:
            self.statistics.oversize_segments.add(sign)

    def _count_reserved(self, pool: Pool, size: int) -> None:
        self.statistics.add(pool.tally, "reserved", size)
        if size > 0:
            self.statistics.segments_taken += 1
        else:
            self.statistics.segments_given += 1

    def _give_oversize(self, pool: Pool, need: int) -> bool:
        """Gives back one cached block too large to be split that is big enough, or as many as make up for it."""
        if self.settings.max_split == UNLIMITED:
            return False
        size = max(need, self.settings.max_split)
        index = bisect_left(pool.free, size << ADDRESS_BITS)
        if index < len(pool.free):
            block = self._blocks[pool.free[index] & ADDRESS]
            if block.segment is not None:
                return False
            self._give(block)
            return True
        given = 0
        for block in reversed(pool.free_blocks()):
            if given >= size or block.size < self.settings.max_split:
                break
            if block.segment is None:
                given += block.size
                self._give(block)
        return given >= size

    def _give_free(self, pool: Pool) -> None:
        growing = []
        for block in pool.free_blocks():
            if block.segment is not None:
                growing.append(block)
            elif not block.split:
                self._give(block)
        for block in growing:
            unmapped = expandable.unmap(block, self._unmapped)
            if unmapped is not None and not unmapped.split:
                assert unmapped.segment is not None
                pool.take_unmapped(unmapped)
                del self._blocks[unmapped.address]
                self._addresses.give(unmapped.segment.address, unmapped.segment.size)

    def _collect(self) -> None:
        """Above the threshold, gives back the free blocks of the large pool that were not used for longest."""
        assert self.cap is not None
        threshold = int(self.settings.collect_above * self.cap)
        if self.reserved <= threshold:
            return
        wanted, given = self.reserved - threshold, 0
        old = [block for pools in self._pools.values() for block in pools[1].free_blocks() if not block.split]
        while old and given < wanted:
            mean = sum(self._age - block.born for block in old) / len(old)
            chosen = [block for block in old if self._age - block.born >= mean]
            old = [block for block in old if self._age - block.born < mean]
            given += sum(block.size for block in chosen)
            for block in chosen:
                self._give(block)

    def _expanded(self, pool: Pool, need: int) -> Block | None:
        """A free block of at least `need` bytes, by mapping what an expandable segment lacks for it."""
        block = expandable.with_space(pool, need)
        if block is None:
            piece = SMALL_SEGMENT if pool.small else self.settings.large_segment
            size = expandable.space_for(self.total, piece)
            address = self._addresses.reserve(size)
            block = Block(address, size, pool, expandable.ExpandableSegment(address, piece, size))
            block.mapped = False
            self._blocks[address] = block
            pool.put_unmapped(block)
        found: Block | None = block
        if not block.mapped:
            found = expandable.map_part(block, min(block.size, need), self._mapped)
        while found is not None and found.size < need:
            beyond = found.next
            assert beyond is not None
            found = expandable.map_part(beyond, min(need - found.size, beyond.size), self._mapped)
        if found is not None:
            pool.take(found)
        return found

    def _mapped(self, block: Block, size: int) -> bool:
        if size > self.free_on_card:
            return False
        self._count_reserved(block.pool, size)
        self.tell(Action.SEGMENT_MAP, block.address, size, block.pool.stream)
        return True

    def _unmapped(self, block: Block, address: int, size: int) -> None:
        self._count_reserved(block.pool, -size)
        self.tell(Action.SEGMENT_UNMAP, address, size, block.pool.stream)


def _with_growth(block: Block) -> int:
    beyond = block.next
    return block.size + (beyond.size if beyond is not None and not beyond.mapped else 0)
