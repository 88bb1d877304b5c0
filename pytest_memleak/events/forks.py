"""Who forks: told by the interpreter, by whatever name the program calls it."""

from __future__ import annotations

import functools
import os
import sys
import weakref
from types import FrameType
from typing import Protocol


class Listener(Protocol):
    def forked(self) -> None:
        """This process has just forked."""


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def tell(listener: Listener) -> None:
    _listen()
    _listeners.add(listener)


def tell_no_more(listener: Listener) -> None:
    _listeners.discard(listener)


@functools.cache
def _listen() -> None:
    """Once in a process: the interpreter keeps such a hook for good."""

    def forked() -> None:
        for listener in list(_listeners):
            listener.forked()

    os.register_at_fork(after_in_parent=forked)


def called_from(module: str, function: str) -> bool:
    """Whether that function of that module is among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__") == module:
            return True
        frame = frame.f_back
    return False
