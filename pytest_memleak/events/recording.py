"""What every recorder of a device's peak has in common: who allocated what was alive then, and an alarm on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from pytest_memleak.events.callbacks import called_by_native_code
from pytest_memleak.events.places import Place

NEVER = 2**62
"""A level that is not reached."""

Reached = Callable[[int, int, bool], int]
"""Is told the level, what was asked for, and whether it was refused; says at which level to be called again."""


class _Turn:
    """One look at a time in a process: each hides objects from the collector when it is over, also from another."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._taken_by: int | None = None

    def take(self, seconds: float) -> bool:
        if self._taken_by == threading.get_ident() or not self._free.acquire(timeout=seconds):
            return False
        self._taken_by = threading.get_ident()
        return True

    def give_back(self) -> None:
        self._taken_by = None
        self._free.release()


_turn = _Turn()
_PATIENCE = 10.0
"""Seconds that a refusal waits for another thread's look. torch gives its allocator's own lock back before it calls
observers (so its sources say), and nothing of ours is held while waiting. But a look may set off code of the program,
such as a finalizer that is due, and that may want a lock which the refused thread has: then one of the two has to give
up."""


class Alarm:
    """Calls `reached`, and never fails: an allocation is not to suffer for an explanation."""

    def __init__(self, reached: Reached, level: int) -> None:
        self.level = level
        self._reached = reached

    @called_by_native_code
    def ring(self, level: int, asked: int, refused: bool) -> int:
        """The level at which to ring again. A refusal waits for another thread's ringing: it is the more telling."""
        if not _turn.take(_PATIENCE if refused else 0):
            return self.level
        try:
            self.level = self._reached(level, asked, bool(refused))
        except BaseException:  # noqa: BLE001 - an allocation must not fail, whatever is met among a program's objects
            self.level = NEVER
        finally:
            _turn.give_back()
        return self.level


class Held(NamedTuple):
    """What one place had allocated."""

    place: Place
    bytes: int
    blocks: int


@dataclass(frozen=True)
class Recorded:
    """The highest level while it recorded, and what was alive then."""

    level: int
    held: tuple[Held, ...]
    small: int | None = 0
    """Bytes in blocks that were too small to ask for their places; None: not told apart from what was before."""
    smallest: int = 0
    """What a block had to have for that."""

    @property
    def before(self) -> int:
        """What was there before the recording."""
        return max(0, self.level - (self.small or 0) - sum(one.bytes for one in self.held))


class Recording(Protocol):
    """One device's. In a pause what is allocated belongs to what was there before, and no level is a peak."""

    device: str

    def begin(self, smallest: int) -> None:
        """Smaller blocks are counted, and nobody asks where they come from."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def end(self) -> None: ...

    def read(self) -> Recorded: ...

    def watch(self, reached: Reached | None, level: int = NEVER) -> None:
        """`reached` is called once so much is allocated, and for every refusal; None: nobody is."""

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        """Where a tensor's memory was allocated, if that was recorded."""
