"""The memory of CPU tensors, as a gauge: exact where the native engine can be built, else tracked by dispatch."""

from __future__ import annotations

import contextlib
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.events import births, garbage
from pytest_memleak.events.callbacks import called_by_native_code
from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.dispatch import DispatchTracker
from pytest_memleak.events.engine import CpuEngine
from pytest_memleak.events.native import ENGINE_VARIABLE, ENGINES
from pytest_memleak.events.storages import address_of, cpu_storages, tensors_among, unique_cpu_storages
from pytest_memleak.meters.foreign import ForeignPeak, Span, covered
from pytest_memleak.meters.reading import COMMITTED, Levels


class _Foreign(NamedTuple):
    """Memory that tensors use and no allocation of torch made."""

    address: int
    bytes: int
    mapped: bool
    prior: bool
    reference: weakref.ref[torch.UntypedStorage]


class Committing(Protocol):
    """Who knows how much of what torch has allocated was written to."""

    def committed(self) -> int: ...

    def take_committed_peak(self) -> int:
        """The most since the last call."""


class CpuTensors:
    """Gauge of the bytes of CPU tensors. One per process is enough; windows share it."""

    device = "cpu"
    kinds: tuple[str, ...] = ("allocated",)
    by_growth = False
    """Those of a peak on the CPU. What is committed is for predictions: all, where nobody accounts for it."""

    def __init__(self, engine: CpuEngine | None = None) -> None:
        self.engine, self.fallback_reason = (engine, None) if engine else _choose()
        """The reason why the exact engine is not in use, or None."""
        self.committing: Committing | None = None
        self.how: str = self.engine.how
        self._foreign: dict[int, _Foreign] = {}
        self._foreign_levels: list[dict[tuple[bool, bool], int]] = [{}]
        """In a box: whoever changes what is foreign puts new ones into it."""
        self._has_looked = False
        self._missed: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._foreign_peak = ForeignPeak(known=lambda mapped: self._foreign_bytes(prior=False, mapped=mapped))
        garbage.thaw()  # a census sees nothing frozen
        self._census(garbage.in_sight(), prior=True)
        garbage.before_freezing(self._census)
        self._prior_peak = self._prior

    @property
    def can_enforce(self) -> bool:
        """Whether a cap refuses allocations; without, it can only be judged at the end."""
        return self.engine.can_enforce

    def set_cap(self, limit: int | None) -> None:
        """An allocation that would lift the level over `limit` raises torch.OutOfMemoryError; None lifts the cap."""
        if limit is not None and not self.can_enforce:
            raise Unavailable(f"a cap cannot be enforced on CPU tensors here: {self.fallback_reason or self.how}")
        # The engine does not count foreign memory, and the card is as full as the gauge says.
        self.engine.set_cap(None if limit is None else max(0, limit - self._prior))

    def begin(self) -> None:
        self.engine.begin()
        births.tell(self._born)
        self.unseen_peak()

    def end(self) -> None:
        births.tell_no_more(self._born)
        self.engine.end()

    def now(self) -> Levels:
        allocated, prior = self.engine.current(), self._prior
        committed = allocated if self.committing is None else self.committing.committed()
        return {"allocated": allocated + prior, COMMITTED: committed + prior}

    def take_peaks(self) -> Levels:
        # Foreign memory that was there first only gets less: its level at the last call is its highest since.
        prior, self._prior_peak = self._prior_peak, self._prior
        allocated = self.engine.take_peak()
        committed = allocated if self.committing is None else self.committing.take_committed_peak()
        return {"allocated": allocated + prior, COMMITTED: committed + prior}

    def refusals(self) -> int:
        return self.engine.refusals()

    def give_back(self) -> None:
        pass

    @contextlib.contextmanager
    def one_look(self) -> Iterator[None]:
        """What is asked until the end is of one moment: in a large process each look takes a tenth of a second."""
        if self._has_looked:
            yield
            return
        self._look()
        self._has_looked = True
        try:
            yield
        finally:
            self._has_looked = False

    def unseen(self) -> int:
        """Bytes of tensors on memory that torch did not allocate and that came after the gauge."""
        self._look()
        return self.mapped + self.unallocated

    def unseen_peak(self) -> int:
        """As `unseen`, but the most that was alive at a time since the last call, without mapped files."""
        self._look()
        return self._foreign_peak.take(mapped=False)

    def mapped_peak(self) -> int:
        """As `unseen_peak`, of mapped files alone."""
        self._look()
        return self._foreign_peak.take(mapped=True)

    @property
    def mapped(self) -> int:
        """Of the last `unseen`, what lies in mapped files: read by pages, and given back under pressure."""
        return self._foreign_bytes(prior=False, mapped=True)

    @property
    def unallocated(self) -> int:
        """Of the last `unseen`, the rest: numpy's memory, shared memory, buffers of other libraries."""
        return self._foreign_bytes(prior=False, mapped=False)

    def blindness(self) -> str | None:
        self._look()
        missed = [storage for reference in list(self._missed.values()) if (storage := reference()) is not None]
        self._missed.clear()
        # What it has learned of since it was missed (each window begins by adopting) is no longer wrong.
        return self.engine.blindness([storage for storage in missed if not self.engine.knows(storage)])

    def mark(self) -> int:
        """What `leaked` counts from."""
        return self.engine.sequence()

    def leaked(self, mark: int) -> dict[int, int]:
        """Bytes by address of what was allocated since `mark` and is alive."""
        return dict(self.engine.live_since(mark))

    def tensors_at(self, addresses: Iterable[int], among: Iterable[object] | None = None) -> list[torch.Tensor]:
        """The live tensors whose storage starts at one of the addresses; by default among the newcomers."""
        wanted = frozenset(addresses)
        found = garbage.newcomers() if among is None else among
        return [
            tensor
            for tensor in tensors_among(found)
            if any(address_of(storage) in wanted for storage in cpu_storages(tensor))
        ]

    @property
    def _prior(self) -> int:
        """Foreign memory that was there before the gauge: part of the level until it dies."""
        return self._foreign_bytes(prior=True, mapped=True) + self._foreign_bytes(prior=True, mapped=False)

    def _foreign_bytes(self, prior: bool, mapped: bool) -> int:
        kind = prior, mapped
        # Taken out of the box before anything is added up: a timeline asks on a thread of its own, and a sum of what
        # was there before a change must not be kept after it.
        levels = self._foreign_levels[0]
        level = levels.get(kind)
        if level is None:
            found = [one for one in list(self._foreign.values()) if (one.prior, one.mapped) == kind]
            level = levels[kind] = covered(Span(one.address, one.bytes, mapped) for one in found)
        return level

    def _born(self, storage: torch.UntypedStorage, mapped: bool) -> None:
        if storage._cdata not in self._foreign and not self.engine.knows(storage) and self.engine.foreign(storage):
            self._foreign_peak.born(storage, mapped)

    def _look(self) -> None:
        if not self._has_looked:
            self._census(garbage.in_sight())

    def _census(self, objects: list[object], prior: bool = False) -> None:
        """Notes the storages that neither the engine nor an earlier census knows."""
        unknown = [
            storage
            for storage in unique_cpu_storages(objects)
            if storage._cdata not in self._foreign and not self.engine.knows(storage)
        ]
        if not unknown:
            return
        if prior:
            unknown = [storage for storage in unknown if not self.engine.adopt(storage)]
        blocks = self.engine.live_since(0)
        starts = [address for address, _ in blocks]
        files = _mapped_files()
        for storage in unknown:
            address = address_of(storage)
            before = bisect_right(starts, address) - 1
            if before >= 0 and address < starts[before] + blocks[before][1]:
                continue  # a view into a block that is counted, made by way of numpy or a pointer
            if not self.engine.foreign(storage):
                self._missed[storage._cdata] = weakref.ref(storage)
                continue
            mapped = any(low <= address < high for low, high in files)
            self._note(storage, address, mapped, prior)

    def _note(self, storage: torch.UntypedStorage, address: int, mapped: bool, prior: bool) -> None:
        key, registry, levels = storage._cdata, self._foreign, self._foreign_levels

        @called_by_native_code
        def gone(reference: weakref.ref[torch.UntypedStorage]) -> None:
            # torch may have given the same identity to a new storage that was noted meanwhile.
            if key in registry and registry[key].reference is reference:
                del registry[key]
                levels[0] = {}

        self._foreign_peak.forget(key)
        registry[key] = _Foreign(address, storage.nbytes(), mapped, prior, weakref.ref(storage, gone))
        levels[0] = {}


def _choose() -> tuple[CpuEngine, str | None]:
    wanted = os.environ.get(ENGINE_VARIABLE) or "auto"
    if wanted not in ENGINES:
        raise BadInput(f"environment variable {ENGINE_VARIABLE}: {wanted!r} is none of {', '.join(ENGINES)}")
    if wanted == "dispatch":
        return DispatchTracker(), f"{ENGINE_VARIABLE}=dispatch asks for the tracker"
    try:
        return CpuAllocator.load(), None
    except Unavailable as reason:
        if wanted == "exact":
            raise
        return DispatchTracker(), str(reason)


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of the process that lie in files; shared memory is a file in name only."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            rows = [line.split(maxsplit=5) for line in maps]
    except OSError:
        return []  # not Linux: nothing can be told to be a file
    ranges = []
    for row in rows:
        path = row[5].strip() if len(row) == 6 else ""
        # Shared memory is in /dev/shm or has no real path.
        if path.startswith("/") and not path.startswith(("/dev/", "/memfd:", "/SYSV")):
            low, _, high = row[0].partition("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges
