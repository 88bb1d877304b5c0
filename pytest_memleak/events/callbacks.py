"""Functions of ours that native code calls, and signals that come just then.

What a signal's handler raises there (Ctrl-C's KeyboardInterrupt, the failure of a test that took too long) has nowhere
to go: ctypes and weak references print it and drop it, the program never hears of it, and the callback is left half
done. So while a program is measured such a handler waits until the callback is over. It is a matter of microseconds,
or of one look at who holds what.
"""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

_SOON = 0.005
"""Seconds until a signal that came in a callback is sent again."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_callbacks: set[CodeType] = set()


def called_by_native_code(function: _Function) -> _Function:
    """Signals wait until it has returned."""
    _callbacks.add(function.__code__)
    return function


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Until the end the handlers that are there now wait for callbacks. Does nothing in other threads than the main
    one, which alone has to do with signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    put: list[int] = []
    try:
        for number in signal.valid_signals():
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, _Waiting):
                put.append(number)
                signal.signal(number, _Waiting(handler))
        yield
    finally:
        for known in put:
            there = signal.getsignal(known)
            if isinstance(there, _Waiting):  # else the program has set one of its own since
                signal.signal(known, there.handler)


class _Waiting:
    """A handler that runs when no callback is under way."""

    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> object:
        if not _in_a_callback(frame):
            return self.handler(number, frame)
        # Not threading.Thread: what was interrupted may hold that module's lock.
        return _thread.start_new_thread(_send_again, (number,))


def _in_a_callback(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in _callbacks:
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    time.sleep(_SOON)
    # One whose handler is gone by now, such as the alarm of a test that is over, would end the process.
    if callable(signal.getsignal(number)):
        # To the thread: a system call in which it waits meanwhile has to end.
        signal.pthread_kill(_main(), number)


def _main() -> int:
    found = threading.main_thread().ident
    assert found is not None
    return found
