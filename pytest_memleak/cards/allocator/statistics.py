"""The allocator's counters, under the names that `torch.cuda.memory_stats()` gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

METRICS = ("current", "peak", "allocated", "freed")
COUNTERS = ("count", "held", "asked", "segments", "reserved", "split", "split_bytes")
# A block is active for as long as it is allocated: nothing here waits for another stream.
NAMES = (
    ("allocation", "count"),
    ("active", "count"),
    ("allocated_bytes", "held"),
    ("active_bytes", "held"),
    ("requested_bytes", "asked"),
    ("segment", "segments"),
    ("reserved_bytes", "reserved"),
    ("inactive_split", "split"),
    ("inactive_split_bytes", "split_bytes"),
)


class Tally:
    """One pool's counters, or those of all pools together, as plain attributes: an allocation touches a dozen of them.

    For each: what it is now, its peak, the sum of its increases (kept by the pools alone), and what it was when that
    sum was last reset; the sum of its decreases follows.
    """

    __slots__ = tuple(f"{name}{kind}" for name in COUNTERS for kind in ("", "_peak", "_sum", "_start"))

    count: int
    count_peak: int
    count_sum: int
    held: int
    held_peak: int
    held_sum: int
    asked: int
    asked_peak: int
    asked_sum: int
    reserved: int
    reserved_peak: int
    split: int
    split_peak: int
    split_sum: int
    split_bytes: int
    split_bytes_peak: int
    split_bytes_sum: int

    def __init__(self) -> None:
        for slot in self.__slots__:
            setattr(self, slot, 0)

    def reset_peak(self) -> None:
        for name in COUNTERS:
            setattr(self, f"{name}_peak", getattr(self, name))

    def reset_accumulated(self) -> None:
        for name in COUNTERS:
            setattr(self, f"{name}_sum", 0)
            setattr(self, f"{name}_start", getattr(self, name))


class Stat:
    """A counter that stands alone."""

    def __init__(self) -> None:
        self.current = self.peak = self.allocated = self.freed = 0

    def add(self, amount: int) -> None:
        self.current += amount
        self.peak = max(self.peak, self.current)
        if amount > 0:
            self.allocated += amount
        else:
            self.freed -= amount

    def reset_peak(self) -> None:
        self.peak = self.current

    def reset_accumulated(self) -> None:
        self.allocated = self.freed = 0

    def metrics(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in METRICS}


class Statistics:
    def __init__(self, max_split: int) -> None:
        self.all, self.small, self.large = Tally(), Tally(), Tally()
        self.oversize_allocations, self.oversize_segments = Stat(), Stat()
        self.retries = self.refusals = self.flushes = self.segments_taken = self.segments_given = 0
        # torch has it in 64 bits with a sign, where "unlimited" is -1.
        self.max_split = max_split if max_split < 2**63 else max_split - 2**64
        self.before_reset: Callable[[], None] = lambda: None
        """Called before a program forgets the peaks; set by whoever reads them as well."""
        self.before_forgetting: Callable[[], None] = lambda: None
        """Called before the peaks go, whoever wants that."""

    def leave_split(self, pool: Tally, blocks: int, size: int) -> None:
        """Free blocks that share a segment with others: their number and bytes change by so much."""
        if blocks > 0:
            pool.split_sum += blocks
        if size > 0:
            pool.split_bytes_sum += size
        for tally in (pool, self.all):
            tally.split += blocks
            if tally.split > tally.split_peak:
                tally.split_peak = tally.split
            tally.split_bytes += size
            if tally.split_bytes > tally.split_bytes_peak:
                tally.split_bytes_peak = tally.split_bytes

    def add(self, pool: Tally, name: str, amount: int) -> None:
        """For what does not happen with every allocation."""
        if amount > 0:
            setattr(pool, f"{name}_sum", getattr(pool, f"{name}_sum") + amount)
        for tally in (pool, self.all):
            setattr(tally, name, getattr(tally, name) + amount)
            setattr(tally, f"{name}_peak", max(getattr(tally, f"{name}_peak"), getattr(tally, name)))

    def reset_peak(self) -> None:
        self.before_reset()
        self.forget_peaks()

    def forget_peaks(self) -> None:
        self.before_forgetting()
        for tally in (self.all, self.small, self.large):
            tally.reset_peak()
        for stat in (self.oversize_allocations, self.oversize_segments):
            stat.reset_peak()

    def reset_accumulated(self) -> None:
        for tally in (self.all, self.small, self.large):
            tally.reset_accumulated()
        for stat in (self.oversize_allocations, self.oversize_segments):
            stat.reset_accumulated()
        self.retries = self.refusals = self.flushes = self.segments_taken = self.segments_given = 0

    def nested(self) -> dict[str, Any]:
        """As `torch.cuda.memory_stats_as_nested_dict()` has it."""
        pools = {"all": self.all, "large_pool": self.large, "small_pool": self.small}
        found: dict[str, Any] = {
            name: {pool: self._metrics(tally, counter) for pool, tally in pools.items()} for name, counter in NAMES
        }
        found |= {
            "num_alloc_retries": self.retries,
            "num_ooms": self.refusals,
            "num_sync_all_streams": self.flushes,
            "num_device_alloc": self.segments_taken,
            "num_device_free": self.segments_given,
            "max_split_size": self.max_split,
            "oversize_allocations": self.oversize_allocations.metrics(),
            "oversize_segments": self.oversize_segments.metrics(),
        }
        return found

    def flat(self) -> dict[str, int]:
        """As `torch.cuda.memory_stats()` has it: "allocated_bytes.all.peak" and so on, sorted."""
        return dict(sorted(_flat("", self.nested())))

    def _metrics(self, tally: Tally, name: str) -> dict[str, int]:
        now, start = getattr(tally, name), getattr(tally, f"{name}_start")
        pools = (self.small, self.large) if tally is self.all else (tally,)
        added = sum(getattr(pool, f"{name}_sum") for pool in pools)
        values = (now, getattr(tally, f"{name}_peak"), added, added - (now - start))
        return dict(zip(METRICS, values, strict=True))


def _flat(prefix: str, values: dict[str, Any]) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(f"{prefix}{name}.", value)
        else:
            found.append((prefix + name, value))
    return found
