"""What the C library keeps for later is given back, from whichever of its arenas a thread has."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_memleak.meters import c_library

# Once a block of this size was freed, smaller ones come from an arena; and once a request was refused, from another.
_PROGRAM = """
import ctypes, sys, threading
from pytest_memleak.meters import c_library
from pytest_memleak.meters.host import committed

library = ctypes.CDLL(None)
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.free(library.malloc(31 << 20))

def left():
    c_library.give_back()
    before = committed()
    lists = [[None] * 500_000 for _ in range(5)]
    taken = committed() - before
    lists.clear()
    c_library.give_back()
    print(taken, committed() - before)


where = sys.argv[1]
if where == "refused":
    assert not library.malloc(1 << 50)
if where == "thread":
    thread = threading.Thread(target=left)
    thread.start()
    thread.join()
else:
    left()
"""


@pytest.mark.skipif(c_library._arenas() is None, reason="this C library is not glibc 2.33 or later")
@pytest.mark.parametrize("where", ["begun", "refused", "thread"])
def test_nothing_is_kept(where: str) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, where], capture_output=True, text=True, check=True)
    taken, kept = map(int, done.stdout.split())
    assert taken >= 19 << 20
    assert kept <= 256 << 10


def test_no_more_is_asked_for_where_malloc_is_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are in none of glibc's arenas, which says that nothing of them is used."""
    if (arenas := c_library._arenas()) is None:
        pytest.skip("this C library is not glibc 2.33 or later")
    asked: list[int] = []

    def malloc(size: int) -> int:
        asked.append(size)
        return 0x7F << 40

    monkeypatch.setattr(arenas, "_malloc", malloc)
    monkeypatch.setattr(arenas, "_free", lambda block: None)
    monkeypatch.setattr(arenas, "_size", lambda: c_library._Size(0, 0))
    c_library.give_back()
    assert len(asked) == 2


def test_where_there_is_no_malloc_trim_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_library, "_malloc_trim", lambda: None)
    monkeypatch.setattr(c_library, "_arenas", lambda: pytest.fail("arenas are of no use without it"))
    c_library.give_back()
    assert not c_library.gives_back()
