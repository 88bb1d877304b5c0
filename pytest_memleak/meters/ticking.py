"""A thread that does something again and again, and that the program under test does not notice."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable

Tick = Callable[[], float | None]
"""Says in how many seconds it is to be called again; None: when somebody rings."""


class Ticker:
    """One daemon thread, from `start` to `stop`. It is not there while the process forks: a child would wait for locks
    that it held, and Python warns of forks beside other threads."""

    def __init__(self, tick: Tick, name: str) -> None:
        self._tick = tick
        self._name = name
        # Held, but for the moment in which it wakes the thread: a timed wait that makes no objects, of which the
        # collector would run earlier than without this thread.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Returns when the first tick is over: then the thread has touched what it takes for itself."""
        _tickers.add(self)
        self._launch()

    def ring(self) -> None:
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def stop(self) -> None:
        _tickers.discard(self)
        self._halt()

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _launch(self) -> None:
        self._stopping, ready = threading.Event(), threading.Event()
        thread = threading.Thread(target=self._run, args=(self._stopping, ready), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no more threads can be had: the program needs them more
        self._thread = thread
        ready.wait(1)

    def _halt(self) -> None:
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            self.ring()
            thread.join()

    def _run(self, stopping: threading.Event, ready: threading.Event) -> None:
        wait = self._tick()
        ready.set()
        while not stopping.is_set():
            self._bell.acquire(timeout=-1 if wait is None else wait)
            if not stopping.is_set():
                wait = self._tick()


_tickers: weakref.WeakSet[Ticker] = weakref.WeakSet()


def _halt_all() -> None:
    for ticker in list(_tickers):
        ticker._halt()


def _launch_all() -> None:
    for ticker in list(_tickers):
        ticker._launch()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_halt_all, after_in_parent=_launch_all, after_in_child=_tickers.clear)
