"""What the C library keeps of memory that nobody uses any more, given back to the system.

glibc's `malloc_trim` gives back whatever lies between blocks that are used; but the *top*, which comes after the last
of them, only in the arena that the process began with. Threads have arenas of their own, and the main thread gets
another one when a request of its is refused. Tens of MiB can be kept in such a top: a base that was read with them is
too high, and what uses them again looks like nothing. A thread reaches its own arena only, so that others' tops stay.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from ctypes import PyDLL, c_size_t, c_ssize_t, c_void_p

_BLOCK = 60 << 10
"""Smaller ones are kept in lists by size when they are freed. Larger ones might be mapped by themselves, and freeing
these moves the threshold for that, which is 128 KiB at first."""
_BLOCKS = 32
"""So many are asked for before a look whether the top was enough for them."""
_ROUND = _BLOCKS * _BLOCK
_MOST = 1 << 30
"""No more is asked for. Free blocks are used before the top, which has 64 MiB at most."""


class _Arenas:
    """glibc's, if malloc is."""

    def __init__(self) -> None:
        library = PyDLL(None)
        if _address(library.malloc) != _address(PyDLL("libc.so.6").malloc):
            raise ValueError("malloc is another library's")
        self._malloc, self._free, self._sbrk = library.malloc, library.free, library.sbrk
        self._malloc.argtypes, self._malloc.restype = [c_size_t], c_void_p
        self._free.argtypes, self._free.restype = [c_void_p], None
        self._sbrk.argtypes, self._sbrk.restype = [c_ssize_t], c_void_p
        with open("/proc/self/stat", "rb") as stat:
            # proc(5): start_brk is the 47th; the name before the third may contain anything.
            self._data_begins = int(stat.read().rpartition(b")")[2].split()[44])

    def is_of_the_process(self) -> bool:
        """Whether this thread has the arena that the process began with, where its data ends."""
        block = self._malloc(_BLOCK)
        self._free(block)
        return block is None or self._data_begins <= block < (self._sbrk(0) or 0)

    @contextlib.contextmanager
    def top_closed(self) -> Iterator[None]:
        """Until the end the top lies between blocks that are used: somebody has the end of it."""
        blocks: list[int] = []
        try:
            more, grown = True, 0
            # It is used up when an arena grows by what was asked for. Less may be another thread's, the 1 MiB that
            # Python asks for at a time, or a part of this; and more the stack of a new thread.
            while more and not _ROUND * 3 // 4 <= grown < _ROUND * 2 and len(blocks) * _BLOCK < _MOST:
                before = _writable()
                more = self._ask_for(blocks)
                grown = _writable() - before
            blocks.reverse()
            while len(blocks) > 1:
                self._free(blocks.pop())
            yield
        finally:
            for block in blocks:
                self._free(block)

    def _ask_for(self, blocks: list[int]) -> bool:
        """Some more of them; False if no more can be had."""
        for _ in range(_BLOCKS):
            if (block := self._malloc(_BLOCK)) is None:
                return False
            blocks.append(block)
        return True


def give_back() -> None:
    if trim := _malloc_trim():
        arenas = _arenas()
        if arenas is None or arenas.is_of_the_process():
            trim(0)
        else:
            with arenas.top_closed():
                trim(0)


def gives_back() -> bool:
    return _malloc_trim() is not None


def _writable() -> int:
    """Bytes that the process may write, whether or not it has touched them."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _arenas() -> _Arenas | None:
    try:
        return _Arenas()
    except (AttributeError, OSError, ValueError, IndexError):
        return None


def _malloc_trim() -> ctypes._NamedFuncPointer | None:
    return getattr(_library(), "malloc_trim", None)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # without the GIL, since it may take a while


def _address(function: ctypes._NamedFuncPointer) -> int | None:
    return ctypes.cast(function, c_void_p).value
