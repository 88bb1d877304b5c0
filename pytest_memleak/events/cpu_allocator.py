"""The exact engine: every block of torch's CPU allocator is counted, on every thread, kernels' scratch included."""

from __future__ import annotations

import ctypes

import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.events import garbage, native
from pytest_memleak.events.storages import address_of, unique_cpu_storages


class CpuAllocator:
    """The process's one counting allocator. It stays in place once loaded, and then does nothing but count."""

    how = "measured at torch's CPU allocator"
    can_enforce = True
    _instance: CpuAllocator | None = None

    def __init__(self, library: ctypes.PyDLL) -> None:
        """Use `load`."""
        self._library = library

    @classmethod
    def load(cls) -> CpuAllocator:
        """Puts it in place, adopting the tensors that are alive; `Unavailable` says why that is impossible."""
        if cls._instance is None:
            engine = cls(native.library())
            if engine._library.memleak_install():
                raise Unavailable(
                    "torch's CPU allocator was replaced by one that cannot be wrapped (it has no raw deleter); "
                    "load pytest-memleak's engine before what replaces it"
                )
            garbage.thaw()  # a census sees nothing frozen
            for storage in unique_cpu_storages(garbage.in_sight()):
                engine.adopt(storage)
            cls._instance = engine
        return cls._instance

    def begin(self) -> None:
        """Counting never stops: there is nothing to switch on."""

    def end(self) -> None:
        """Counting never stops."""

    def current(self) -> int:
        return int(self._library.memleak_current())

    def peak(self) -> int:
        return int(self._library.memleak_peak())

    def reset_peak(self) -> None:
        self._library.memleak_take_peak()

    def take_peak(self) -> int:
        return int(self._library.memleak_take_peak())

    def set_cap(self, limit: int | None) -> None:
        """From now on an allocation that would lift the level over `limit` raises torch.OutOfMemoryError."""
        self._library.memleak_set_cap(-1 if limit is None else limit)

    def refusals(self) -> int:
        """Allocations refused so far, by the cap or by the machine."""
        return int(self._library.memleak_refusals())

    def sequence(self) -> int:
        return int(self._library.memleak_sequence())

    def live_since(self, mark: int) -> list[tuple[int, int]]:
        """Address and bytes of the blocks allocated after `mark` and alive; with 0, of all blocks."""
        room = 0
        while True:
            addresses = (ctypes.c_uint64 * room)()
            sizes = (ctypes.c_int64 * room)()
            count = int(self._library.memleak_live_since(mark, addresses, sizes, room))
            if count <= room:
                return sorted(zip(addresses[:count], sizes[:count], strict=True))
            room = count + 64  # other threads go on allocating

    def knows_address(self, address: int) -> bool:
        return bool(self._library.memleak_knows(address))

    def knows(self, storage: torch.UntypedStorage) -> bool:
        address = address_of(storage)
        return address == 0 or self.knows_address(address)

    def adopt(self, storage: torch.UntypedStorage) -> bool:
        return bool(self._library.memleak_adopt(storage._cdata))

    def in_place(self) -> bool:
        """Whether torch still allocates through it."""
        return bool(self._library.memleak_in_place())

    def foreign(self, storage: torch.UntypedStorage) -> bool:
        return True  # it misses nothing that the allocator made

    def blindness(self, missed: list[torch.UntypedStorage]) -> str | None:
        if self.in_place():
            return None
        return (
            "torch's CPU allocator was replaced after pytest-memleak's engine was put in place, so allocations went "
            "past it; load what replaces it first"
        )
