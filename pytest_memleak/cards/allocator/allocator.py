"""CUDA's caching allocator, emulated: the same sizes, addresses, retries and refusals, without a card.

After torch's c10/cuda/CUDACachingAllocator.cpp (2.6 to 2.13). Left out: private pools (CUDA graphs, MemPool), and
`record_stream`, which keeps a released block from being reused until other streams are done with it; here a released
block is free at once. Both change what is reserved, never what is requested.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Any

from pytest_memleak.cards.allocator.addresses import Addresses
from pytest_memleak.cards.allocator.blocks import ADDRESS, ADDRESS_BITS, Block
from pytest_memleak.cards.allocator.reserve import Observer, Reserve
from pytest_memleak.cards.allocator.rules import BLOCK, SMALL, UNLIMITED, rounded
from pytest_memleak.cards.allocator.settings import Settings
from pytest_memleak.cards.allocator.trace import Action

# Longer than any allocation takes: who waits this long waits for itself.
PATIENCE = 60.0
NOBODY = 1 << 62
"""Nobody is told of a block, however large."""


class Allocator(Reserve):
    """One card's memory. `total` is the card, `cap` what this process may reserve, `others` what is taken already.

    `context` is the part of `others` that is this process's own, if it is known: refusals name it then, as torch does
    where it can ask the driver.
    """

    def __init__(
        self,
        total: int,
        *,
        cap: int | None = None,
        others: int = 0,
        context: int | None = None,
        settings: Settings | None = None,
        addresses: Addresses | None = None,
        device: int = 0,
    ) -> None:
        super().__init__(
            total, cap=cap, others=others, context=context, settings=settings, addresses=addresses, device=device
        )
        # Tensors die whenever the garbage collector runs, also in the middle of an allocation: what is released while
        # the allocator is at work waits until it is done.
        self._lock = threading.Lock()
        self._late: list[int] = []
        self._told_of: list[int] = []
        self._told_from = NOBODY
        settings = self.settings
        self._simple = settings.max_split == UNLIMITED and not settings.expandable and not settings.collect_above

    @property
    def allocated(self) -> int:
        return self.statistics.all.held

    @property
    def requested(self) -> int:
        return self.statistics.all.asked

    def observe(self, observer: Observer, smallest: int = 0) -> Callable[[], None]:
        """From now on `observer` is told of every event; call what is returned to end that.

        Of blocks that are smaller than `smallest` it need not be told. It is called in the middle of things: it may
        read the counters, not allocate.
        """
        self._observers.append(observer)
        self._told_of.append(smallest)
        self._told_from = min(self._told_of)

        def end() -> None:
            self._observers.remove(observer)
            self._told_of.remove(smallest)
            self._told_from = min(self._told_of, default=NOBODY)

        return end

    def alloc(self, size: int, stream: int = 0) -> int:
        """The address of a block for `size` bytes; 0 for none at all. Raises CardFull."""
        if size <= 0:
            if size:
                raise ValueError(f"{size} bytes cannot be allocated")
            return 0
        if not self._lock.acquire(False):
            self._wait()
        try:
            settings = self.settings
            need = (size + 511) & -512 if settings.divisions is None else rounded(size, settings.divisions)
            pools = self._pools.get(stream) or self.pools_of(stream)
            pool = pools[0] if need <= SMALL else pools[1]
            if self._simple:
                free = pool.free
                index = bisect_left(free, need << ADDRESS_BITS)
                block = self._blocks[free.pop(index) & ADDRESS] if index < len(free) else self.new_block(pool, need)
            else:
                block = self.cached(pool, need) or self.new_block(pool, need)
            tally, statistics = pool.tally, self.statistics
            rest = block.size - need
            if rest >= BLOCK if pool.small or settings.expandable else rest > SMALL and need < settings.max_split:
                remaining = Block(block.address + need, rest, pool, block.segment)
                if block.segment is None:
                    blocks, change = (0, -need) if block.previous or block.next else (1, rest)
                    statistics.leave_split(tally, blocks, change)
                block.size = need
                remaining.previous = block
                following = remaining.next = block.next
                if following is not None:
                    following.previous = remaining
                block.next = remaining
                self._blocks[remaining.address] = remaining
                remaining.born = self._age
                insort(pool.free, rest << ADDRESS_BITS | remaining.address)
            elif block.segment is None and (block.previous or block.next):
                statistics.leave_split(tally, -1, -block.size)
            block.used = True
            block.asked = size
            held = block.size
            tally.count_sum += 1
            tally.held_sum += held
            tally.asked_sum += size
            for counters in (tally, statistics.all):
                counters.count += 1
                if counters.count > counters.count_peak:
                    counters.count_peak = counters.count
                counters.held += held
                if counters.held > counters.held_peak:
                    counters.held_peak = counters.held
                counters.asked += size
                if counters.asked > counters.asked_peak:
                    counters.asked_peak = counters.asked
            if held >= settings.max_split:
                statistics.oversize_allocations.add(1)
            address = block.address
            if held >= self._told_from:
                self.tell(Action.ALLOC, address, size, stream)
            return address
        finally:
            self._lock.release()
            if self._late:
                self._catch_up()

    def free(self, address: int) -> None:
        """Releases the block at `address`; whatever its segment holds besides stays."""
        if not self._lock.acquire(False):
            self._late.append(address)
            # Its holder may have looked for late ones a moment ago.
            if not self._lock.locked():
                self._catch_up()
            return
        try:
            self._free(address)
        finally:
            self._lock.release()
            if self._late:
                self._catch_up()

    def _wait(self) -> None:
        if not self._lock.acquire(timeout=PATIENCE):
            raise RuntimeError(
                "the simulated card is busy: was it used by an observer, or while a tensor was released?"
            )

    def _catch_up(self) -> None:
        while self._late and self._lock.acquire(False):
            try:
                while self._late:
                    self._free(self._late.pop(0))
            finally:
                self._lock.release()

    def _free(self, address: int) -> None:
        block = self._blocks.get(address)
        if block is None or not block.used:
            if address == 0:
                return
            raise ValueError(f"nothing is allocated at {address:#x}")
        pool, size, asked = block.pool, block.size, block.asked
        tally, statistics = pool.tally, self.statistics
        for counters in (tally, statistics.all):
            counters.count -= 1
            counters.held -= size
            counters.asked -= asked
        if size >= self.settings.max_split:
            statistics.oversize_allocations.add(-1)
        block.used = False
        free = pool.free
        merged = absorbed = 0
        previous = block.previous
        if previous is not None and not previous.used and previous.mapped:
            del free[bisect_left(free, previous.size << ADDRESS_BITS | previous.address)]
            merged, absorbed = 1, previous.size
            previous.size += size
            following = previous.next = block.next
            if following is not None:
                following.previous = previous
            del self._blocks[address]
            block = previous
        following = block.next
        if following is not None and not following.used and following.mapped:
            del free[bisect_left(free, following.size << ADDRESS_BITS | following.address)]
            merged += 1
            absorbed += following.size
            block.size += following.size
            last = block.next = following.next
            if last is not None:
                last.previous = block
            del self._blocks[following.address]
        block.born = self._age
        insort(free, block.size << ADDRESS_BITS | block.address)
        if block.segment is None:
            if block.previous or block.next:
                statistics.leave_split(tally, 1 - merged, block.size - absorbed)
            elif merged:
                statistics.leave_split(tally, -merged, -absorbed)
        if size >= self._told_from:
            self.tell(Action.FREE, address, asked, pool.stream)

    def empty_cache(self) -> None:
        """Gives every wholly free segment back to the card."""
        self._wait()
        try:
            self.flush()
        finally:
            self._lock.release()
            if self._late:
                self._catch_up()

    def size_of(self, address: int) -> int:
        """The bytes of the block that is allocated at `address`."""
        return self._blocks[address].size

    def stream_of(self, address: int) -> int:
        """The stream on which the block at `address` was allocated."""
        return self._blocks[address].pool.stream

    def reset_peak_memory_stats(self) -> None:
        self.statistics.reset_peak()

    def reset_accumulated_memory_stats(self) -> None:
        self.statistics.reset_accumulated()

    def memory_stats(self) -> dict[str, int]:
        return self.statistics.flat()

    def memory_stats_as_nested_dict(self) -> dict[str, Any]:
        return self.statistics.nested()

    def segments(self) -> list[list[Block]]:
        """The blocks of every segment, in order: for a look inside, as a snapshot gives it."""
        found = []
        for _, block in sorted(self._blocks.items()):
            if block.previous is None:
                found.append([block])
            else:
                found[-1].append(block)
        return found
