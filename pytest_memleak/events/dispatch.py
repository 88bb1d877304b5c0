"""The fallback without a compiler: CPU storages, as the operations that return them are dispatched.

Dispatch modes are thread-local, so every thread that starts while the tracker is on runs under one of its own, and so
does what an older thread pool is given to do. What an operation allocates and releases inside is never seen.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import thread as pools
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_memleak.events import births, garbage
from pytest_memleak.events.older_threads import OlderThreads
from pytest_memleak.events.storages import address_of, cpu_storages, unique_cpu_storages


@dataclass
class _Tracked:
    bytes: int
    number: int
    address: int
    reference: weakref.ref[torch.UntypedStorage]


class DispatchTracker:
    """Same questions as the exact engine, answered from what operations returned."""

    how = (
        "tracked by dispatch: tensors on Python threads (of those older than the window only pools), without the "
        "scratch memory of kernels"
    )
    can_enforce = False

    def __init__(self) -> None:
        self._tracked: dict[int, _Tracked] = {}
        # Weakref callbacks run anywhere, even in the middle of our own bookkeeping: they only leave a note here.
        self._dead: deque[tuple[int, weakref.ref[torch.UntypedStorage]]] = deque()
        self._lock = threading.RLock()
        self._current = 0
        self._peak = 0
        self._sequence = 1  # 0 is the number of what was adopted
        self._begun = 0
        self._mode: _Mode | None = None
        self._undo: list[Callable[[], None]] = []
        self._older = OlderThreads()
        garbage.before_freezing(self._adopt_all)
        os.register_at_fork(after_in_child=_unless_gone(self))

    @property
    def on(self) -> bool:
        return self._begun > 0

    def begin(self) -> None:
        """Adopts what is alive (what lived before is part of the level), and watches from here on, on all threads."""
        if self.on:
            self._begun += 1
            return
        self._adopt_all(garbage.in_sight())
        self._begun = 1
        self._older = OlderThreads()
        self._watch_threads()
        births.tell(self._born)
        self._mode = _Mode(self)
        self._mode.__enter__()

    def end(self) -> None:
        self._begun -= 1
        if self._begun or self._mode is None:
            return
        self._mode.__exit__(None, None, None)
        self._mode = None
        births.tell_no_more(self._born)
        while self._undo:
            self._undo.pop()()

    def current(self) -> int:
        with self._lock:
            self._bury()
            return self._current

    def peak(self) -> int:
        with self._lock:
            return self._peak

    def reset_peak(self) -> None:
        self.take_peak()

    def take_peak(self) -> int:
        with self._lock:
            self._bury()
            peak, self._peak = self._peak, self._current
            return peak

    def refusals(self) -> int:
        """None are ever seen: see `can_enforce`."""
        return 0

    def set_cap(self, limit: int | None) -> None:
        """Nothing: a cap is judged at the end."""

    def sequence(self) -> int:
        with self._lock:
            return self._sequence

    def live_since(self, mark: int) -> list[tuple[int, int]]:
        with self._lock:
            self._bury()
            alive = [one for one in self._tracked.values() if mark == 0 or one.number > mark]
        return sorted((one.address, one.bytes) for one in alive)

    def knows(self, storage: torch.UntypedStorage) -> bool:
        with self._lock:
            self._bury()
            return storage._cdata in self._tracked

    def adopt(self, storage: torch.UntypedStorage) -> bool:
        if not _allocated(storage):
            return False
        with self._lock:
            self._bury()
            self._count(storage, number=0)
        return True

    def foreign(self, storage: torch.UntypedStorage) -> bool:
        return not _allocated(storage)

    def blindness(self, missed: list[torch.UntypedStorage]) -> str | None:
        if not missed:
            return self._older.worked() if self.on else None
        total = sum(storage.nbytes() for storage in missed)
        return (
            f"{total:,} B of CPU tensors are alive that the dispatch tracker never saw being allocated: made by a "
            "thread that existed before the test, or by code that goes past the dispatcher; install a C++ compiler, "
            "and the exact engine sees them"
        )

    def saw(self, result: Any) -> None:
        """An operation returned this."""
        if isinstance(result, torch.Tensor):
            for storage in cpu_storages(result):
                self._born(storage)
        elif isinstance(result, (list, tuple)):
            for part in result:
                self.saw(part)

    def _born(self, storage: torch.UntypedStorage, mapped: bool = False) -> None:
        if not mapped and _allocated(storage):
            with self._lock:
                self._bury()
                self._count(storage, number=None)

    def _count(self, storage: torch.UntypedStorage, number: int | None) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._tracked.get(key)
        if known is None:
            if number is None:
                self._sequence += 1
                number = self._sequence
            dead = self._dead
            # On the storage: torch.utils.swap_tensors refuses tensors that have weak references.
            reference = weakref.ref(storage, lambda gone: dead.append((key, gone)))
            self._tracked[key] = _Tracked(size, number, address_of(storage), reference)
            self._current += size
        elif known.bytes != size:
            self._current += size - known.bytes
            known.bytes, known.address = size, address_of(storage)
        self._peak = max(self._peak, self._current)

    def _bury(self) -> None:
        while self._dead:
            key, reference = self._dead.popleft()
            known = self._tracked.get(key)
            if known is not None and known.reference is reference:
                del self._tracked[key]
                self._current -= known.bytes

    def _adopt_all(self, objects: list[object]) -> None:
        if self.on:
            return  # what the operations did not show while it watched is for `blindness` to tell
        for storage in unique_cpu_storages(objects):
            if not self.knows(storage):
                self.adopt(storage)

    def _forked(self) -> None:
        # A thread that the child does not have may have held the lock; and nobody reads this copy.
        self._lock = threading.RLock()
        self._begun = 0

    def _watch_threads(self) -> None:
        def forwarding(original: Callable[..., Any]) -> Callable[..., Any]:
            def run(this: Any, *args: Any, **kwargs: Any) -> Any:
                if _Mode.active_here():
                    return original(this, *args, **kwargs)
                with _Mode(self):
                    return original(this, *args, **kwargs)

            return run

        # _bootstrap_inner: subclasses override run. _WorkItem.run: the threads of a pool may be older than the test.
        for owner, name in ((threading.Thread, "_bootstrap_inner"), (pools._WorkItem, "run")):
            original = getattr(owner, name)
            setattr(owner, name, forwarding(original))
            self._undo.append(functools.partial(setattr, owner, name, original))


def _unless_gone(tracker: DispatchTracker) -> Callable[[], None]:
    alive = weakref.ref(tracker)

    def forked() -> None:
        if (here := alive()) is not None:
            here._forked()

    return forked


class _Mode(TorchDispatchMode):
    """One thread's view; a thread that outlives the window keeps its mode, which then only passes on."""

    _here = threading.local()

    def __init__(self, tracker: DispatchTracker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracker = tracker

    @classmethod
    def active_here(cls) -> bool:
        return bool(getattr(cls._here, "depth", 0))

    def __enter__(self) -> _Mode:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        self._here.depth -= 1
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._tracker.on:
            self._tracker.saw(result)
        return result


def _allocated(storage: torch.UntypedStorage) -> bool:
    """Whether the CPU allocator made it; files, numpy's memory and other foreign bytes cannot be resized."""
    return storage.resizable() and not storage.is_shared()
