"""What the C library keeps of memory that nobody uses any more, given back to the system.

glibc's `malloc_trim` gives back whatever lies between blocks that are used, but what comes after the last one (the
*top*) in the arena alone that the process has begun with. Each thread has an arena of its own, and so has the main one
from the first request on that was refused. Tens of MiB can be kept there: a base that was read with them is too high,
and what uses them again looks like nothing. A thread reaches its own arena only, so that others' tops stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Iterator
from ctypes import PyDLL, c_size_t, c_ssize_t, c_void_p
from typing import NamedTuple

_BLOCK = 60 << 10
"""Less is kept apart for each size, and more might be mapped from the system by itself: its threshold is often 64 KiB,
and freeing what is mapped moves that."""
_MOST = 128 << 20
"""A top has 64 MiB at most; free blocks of the size are used before it."""
_MANY = 32
"""Blocks that are asked for before a look whether the top was enough for them: it walks over all that is free."""


class _Info(ctypes.Structure):
    """As mallinfo2(3) has it: what all arenas have of the system, and what of that is used."""

    _fields_ = [
        ("arena", c_size_t),
        *((name, c_size_t) for name in ("ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        ("uordblks", c_size_t),
        *((name, c_size_t) for name in ("fordblks", "keepcost")),
    ]


class _Size(NamedTuple):
    arenas: int
    used: int


class _Arenas:
    """glibc's, since 2.33."""

    def __init__(self) -> None:
        library = PyDLL(None)  # with the GIL: no other Python thread comes between these
        self._malloc, self._free, self._sbrk, self._info = library.malloc, library.free, library.sbrk, library.mallinfo2
        self._malloc.argtypes, self._malloc.restype = [c_size_t], c_void_p
        self._free.argtypes, self._free.restype = [c_void_p], None
        self._sbrk.argtypes, self._sbrk.restype = [c_ssize_t], c_void_p
        self._info.restype = _Info

    def is_the_first(self) -> bool:
        """Whether this thread has the arena that ends where the process's data does."""
        block = self._malloc(_BLOCK) or 0
        self._free(block)
        return bool(block < (self._sbrk(0) or 0))

    @contextlib.contextmanager
    def top_closed(self) -> Iterator[None]:
        """Until the end the top lies between blocks that are used: somebody has the end of it."""
        before = self._size()
        blocks = self._more(1)
        try:
            # Else malloc is another library's, or asks the system for each block.
            if self._size().used >= before.used + _BLOCK:
                while self._size().arenas == before.arenas and len(blocks) * _BLOCK < _MOST:
                    blocks += self._more(_MANY)
            while len(blocks) > 1:
                self._free(blocks.pop(0))
            yield
        finally:
            for block in blocks:
                self._free(block)

    def _more(self, count: int) -> list[int]:
        return [self._malloc(_BLOCK) for _ in range(count)]

    def _size(self) -> _Size:
        info = self._info()
        return _Size(info.arena, info.uordblks)


def give_back() -> None:
    if trim := _malloc_trim():
        trim(0)
        arenas = _arenas()
        if arenas is not None and not arenas.is_the_first():
            with arenas.top_closed():
                trim(0)


def gives_back() -> bool:
    return _malloc_trim() is not None


@functools.cache
def _arenas() -> _Arenas | None:
    try:
        return _Arenas()
    except AttributeError:
        return None


def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
