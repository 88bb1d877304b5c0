"""What CPU tensors take at their peak, by the place that allocated them: recorded by the exact engine."""

from __future__ import annotations

import ctypes

from pytest_memleak.events import native
from pytest_memleak.events.places import Places


class CpuRecording:
    device = "cpu"

    def __init__(self) -> None:
        self._library = native.library()
        self._places = Places()
        # Kept as long as C++ may call it.
        self._here = native.Here(self._places.here)

    def begin(self) -> None:
        self._library.memleak_record_begin(self._here)

    def pause(self) -> None:
        self._library.memleak_record_notice(False)

    def resume(self) -> None:
        self._library.memleak_record_notice(True)

    def end(self) -> None:
        self._library.memleak_record_end()

    def read(self):
        level = ctypes.c_int64()
        room = 0
        while True:
            held = (native.Held * room)()
            count = self._library.memleak_record_read(held, room, ctypes.byref(level))
            if count <= room:
                break
            room = count
        return level.value, [(one.bytes, one.blocks, *self._places[number]) for number, one in enumerate(held[:count]) if one.blocks]
