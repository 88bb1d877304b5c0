"""What the C library keeps for later is given back, from whichever of its arenas a thread has."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pytest_memleak.meters import c_library

of_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or c_library._arenas() is None, reason="malloc is not glibc's"
)
MIB = 1024**2

# Once a block of 31 MiB was freed, smaller ones come from an arena. glibc gives a thread whose request was refused
# another one if there is a second thread.
_PROGRAM = """
import ctypes, sys, threading, time
from pytest_memleak.meters import c_library, gauge, host

library = ctypes.CDLL(None)
library.prctl(41, 1, 0, 0, 0)  # no huge pages: they are neither taken nor kept for a few bytes
library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
pins = []

def fill(count, size, pinned=False, seconds=0):
    blocks = []
    for _ in range(count):
        blocks.append(library.malloc(size))
        library.memset(blocks[-1], 1, size)
        if pinned:
            pins.append(library.malloc(2000))
    time.sleep(seconds)
    for block in reversed(blocks):
        library.free(block)

def left():
    assert c_library._arenas().is_of_the_process() == (where == "begun")
    if where == "fragments":
        fill(2000, 100_000, pinned=True)
    c_library.give_back()
    before = host.committed()
    fill(12, 4 << 20)
    library.malloc_trim(0)
    trimmed = host.committed() - before
    c_library.give_back()
    print(trimmed, host.committed() - before)

def seen():
    fill(12, 4 << 20)
    shared = gauge.SharedGauge(host.HostMemory())
    for count in (0, 12):
        window = shared.window()
        window.open()
        fill(count, 4 << 20, seconds=0.5)  # until a sample has been taken
        for _ in range(20):
            part = shared.window()
            part.open()
            part.close()
        reading = window.close()
        print(reading.peak["committed"] - reading.base["committed"])

where, act = sys.argv[1:]
library.free(library.malloc(31 << 20))
done = threading.Event()
threading.Thread(target=done.wait, daemon=True).start()
if where == "thread":
    thread = threading.Thread(target=globals()[act])
    thread.start()
    thread.join()
else:
    if where != "begun":
        assert not library.malloc(1 << 50)
    globals()[act]()
"""


def _said(where: str, act: str) -> list[int]:
    environment = {name: one for name, one in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    command = [sys.executable, "-c", _PROGRAM, where, act]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert not done.stderr
    assert done.returncode == 0
    return [int(word) for word in done.stdout.split()]


@of_glibc
@pytest.mark.parametrize("where", ["begun", "refused", "thread", "fragments"])
def test_what_malloc_trim_keeps_is_given_back(where: str) -> None:
    trimmed, kept = _said(where, "left")
    if where != "begun":
        assert trimmed >= 40 * MIB
    assert kept <= 2 * MIB


@of_glibc
@pytest.mark.parametrize("where", ["begun", "refused", "thread"])
def test_what_that_takes_is_no_peak_of_others(where: str) -> None:
    """Blocks are asked for on the way, of a page each: some 3 MiB if the end of an arena is 48 MiB away."""
    nothing, filled = _said(where, "seen")
    assert nothing <= 2 * MIB
    assert 47 * MIB <= filled <= 50 * MIB


@of_glibc
def test_no_more_is_asked_for_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where malloc is another library's, its blocks may be in no arena that grows."""
    arenas = c_library._arenas()
    asked: list[int] = []

    def malloc(size: int) -> int:
        asked.append(size)
        return len(asked)

    freed: list[int] = []
    monkeypatch.setattr(arenas, "_malloc", malloc)
    monkeypatch.setattr(arenas, "_free", freed.append)
    monkeypatch.setattr(arenas, "is_of_the_process", lambda: False)
    monkeypatch.setattr(c_library, "_writable", lambda: 1)
    c_library.give_back()
    assert 1024 * MIB <= sum(asked) < 1030 * MIB
    assert sorted(freed) == list(range(1, len(asked) + 1))


@of_glibc
def test_what_other_threads_take_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = c_library._arenas()
    new_arena, of_python, new_stack, asked_for = 33 * 4096, MIB, 8 * MIB, 32 * (60 * 1024 + 16)
    grown = [0, new_arena, of_python, new_stack, asked_for]
    levels = iter([level for one in grown for level in (0, one)])
    asked: list[int] = []

    def malloc(size: int) -> int:
        asked.append(size)
        return len(asked)

    monkeypatch.setattr(arenas, "_malloc", malloc)
    monkeypatch.setattr(arenas, "_free", lambda block: None)
    monkeypatch.setattr(arenas, "is_of_the_process", lambda: False)
    monkeypatch.setattr(c_library, "_writable", lambda: next(levels))
    c_library.give_back()
    assert len(asked) == 5 * 32


@of_glibc
def test_a_refused_block_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas = c_library._arenas()
    answers: list[int | None] = [1, 2, 3, None]
    freed: list[int] = []
    monkeypatch.setattr(arenas, "_malloc", lambda size: answers.pop(0))
    monkeypatch.setattr(arenas, "_free", freed.append)
    monkeypatch.setattr(arenas, "is_of_the_process", lambda: False)
    c_library.give_back()
    assert not answers
    assert sorted(freed) == [1, 2, 3]


def test_where_there_is_no_malloc_trim_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_library, "_malloc_trim", lambda: None)
    monkeypatch.setattr(c_library, "_arenas", lambda: pytest.fail("arenas are of no use without it"))
    c_library.give_back()
    assert not c_library.gives_back()
