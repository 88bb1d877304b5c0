"""The host's memory as a played rank would take it: committed, allocated, mapped.

The machine that plays a rank has no room for all of that. Large tensors of the CPU are allocated and never touched (in
cards/simulated/native/host.cpp), and what a system would have committed is counted as it goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from pytest_memleak.cards.simulated import library
from pytest_memleak.errors import Unavailable
from pytest_memleak.events import births, native
from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.storages import address_of
from pytest_memleak.meters import shared
from pytest_memleak.upstream.patches import Patch

_FIGURES = 3


@dataclass(frozen=True)
class HostFigures:
    """Bytes of CPU tensors, predicted; none of the interpreter's and of libraries' own."""

    committed: int
    """What a system has given memory to, because it was written: this rank's own, on top of every other rank's.
    `zeros_like` commits all of it, `empty_like` nothing until somebody writes. Of small tensors all counts."""
    allocated: int
    """What tensors were given addresses for, written or not."""
    mapped: int
    """What tensors see of mapped files (safetensors). Pages of the file: one copy for all ranks of a node, and given
    back when memory is short. One that is written to is committed as well."""

    def raised_to(self, other: HostFigures) -> HostFigures:
        return HostFigures(
            max(self.committed, other.committed),
            max(self.allocated, other.allocated),
            max(self.mapped, other.mapped),
        )

    def __sub__(self, other: HostFigures) -> HostFigures:
        return HostFigures(
            self.committed - other.committed, self.allocated - other.allocated, self.mapped - other.mapped
        )


class HostAccount:
    """What the host holds now, and the most since the last `take`."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self._library = library
        # A timeline asks on a thread of its own.
        self._lock = threading.Lock()
        self._most = HostFigures(0, 0, 0)
        self._most_committed = 0
        """Since somebody else asked, for whom it is kept apart: the gauge of CPU tensors."""

    def now(self) -> HostFigures:
        """The peaks begin anew as well."""
        return self.take()[0]

    def take(self) -> tuple[HostFigures, HostFigures]:
        """Now, and the most of each since the last call; these need not have been at the same time."""
        with self._lock:
            now = self._read()
            most, self._most = self._most, now
            return now, most

    def committed(self) -> int:
        """Now, and no peak begins anew."""
        with self._lock:
            return self._read().committed

    def take_committed_peak(self) -> int:
        """The most since the last call of this method."""
        with self._lock:
            now = self._read()
            most, self._most_committed = self._most_committed, now.committed
            return most

    def _read(self) -> HostFigures:
        """Native peaks begin anew whenever they are read: what is read goes to all who wait for it."""
        out = (ctypes.c_int64 * (2 * _FIGURES))()
        self._library.memleak_card_host_take(out)
        now, most = HostFigures(*out[:_FIGURES]), HostFigures(*out[_FIGURES:])
        self._most = self._most.raised_to(most)
        self._most_committed = max(self._most_committed, most.committed)
        return now


@contextlib.contextmanager
def accounted() -> Iterator[HostAccount]:
    """Until the end large CPU tensors are counted in place of being written."""
    if not isinstance(shared.cpu_memory().engine, CpuAllocator):
        raise Unavailable(
            f"a rank's host memory cannot be accounted: {shared.cpu_memory().fallback_reason}, and it takes the exact "
            "engine for CPU tensors"
        )
    card = library.load()
    counts = native.library()
    current, recent = (
        ctypes.cast(function, ctypes.c_void_p) for function in (counts.memleak_current, counts.memleak_take_recent_peak)
    )
    with contextlib.ExitStack() as undo:
        card.memleak_card_host_on(current, recent)
        undo.callback(card.memleak_card_host_off)
        mapped = _Mapped()
        births.tell(mapped.born)
        undo.callback(births.tell_no_more, mapped.born)
        undo.enter_context(Patch(torch, "asarray", mapped.noted))
        account = HostAccount(card)
        account.take_committed_peak()
        account.now()
        _tell_the_gauge(account)
        yield account


def _tell_the_gauge(account: HostAccount) -> None:
    """`max_host_peak` goes by what is committed: also afterwards, since what is left then may be empty still."""
    shared.cpu_tensors().fold()  # what was until now goes by what was known until now
    shared.cpu_memory().committing = account


class _Mapped:
    """Which addresses lie in files, and the tensors that are made of them: as safetensors does, and torch.load."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def born(self, storage: torch.UntypedStorage, mapped: bool) -> None:
        if mapped:
            address = address_of(storage)
            self._ranges.append((address, address + storage.nbytes()))

    def noted(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def asarray(obj: Any, *args: Any, **kwargs: Any) -> Any:
            made = found(obj, *args, **kwargs)
            if isinstance(obj, torch.UntypedStorage) and self._has(address_of(obj)):
                torch.ops.memleak_card.mapped(made)
            return made

        return asarray

    def _has(self, address: int) -> bool:
        return any(begin <= address < end for begin, end in self._ranges)
