"""What CPU tensors take at their peak, by the place that allocated them: recorded by the exact engine."""

from __future__ import annotations

import ctypes

import torch

from pytest_memleak.events import native
from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.places import Place, Places
from pytest_memleak.events.recording import NEVER, Alarm, Held, Reached, Recorded
from pytest_memleak.events.storages import address_of, cpu_storages


class CpuRecording:
    device = "cpu"

    def __init__(self) -> None:
        CpuAllocator.load()
        self._library = native.library()
        self._places = Places()
        self._smallest = 0
        # Both are kept for as long as C++ may call them.
        self._here = native.Here(self._places.here)
        self._reached = native.Reached()

    def begin(self, smallest: int) -> None:
        self._smallest = smallest
        self._library.memleak_record_begin(self._here, smallest)

    def pause(self) -> None:
        self._library.memleak_record_notice(False)

    def resume(self) -> None:
        self._library.memleak_record_notice(True)

    def end(self) -> None:
        self._library.memleak_record_end()

    def read(self) -> Recorded:
        level, room, count = ctypes.c_int64(), 0, 1
        held = (native.Held * 0)()
        while count > room:
            room = count
            held = (native.Held * room)()
            count = int(self._library.memleak_record_read(held, room, ctypes.byref(level)))
        found = {number: (held[number].bytes, held[number].blocks) for number in range(count)}
        small, _ = found.pop(Places.SMALL, (0, 0))
        found.pop(Places.BEFORE, None)
        return Recorded(
            level.value,
            tuple(Held(self._places[number], *amounts) for number, amounts in found.items() if amounts[1]),
            small,
            self._smallest,
        )

    def watch(self, reached: Reached | None, level: int = NEVER) -> None:
        previous = self._reached  # until C++ has the next one
        self._reached = native.Reached(Alarm(reached, level).ring) if reached else native.Reached()
        self._library.memleak_watch(self._reached, level)
        del previous

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        for storage in cpu_storages(tensor):
            number = int(self._library.memleak_place_of(address_of(storage)))
            if number not in (Places.BEFORE, Places.UNKNOWN, Places.SMALL):
                return self._places[number]
        return None
