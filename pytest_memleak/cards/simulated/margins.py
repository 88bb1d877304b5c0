"""How much more a card may have held: what some kernels take for themselves is not known (native/margins.cpp)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pytest_memleak.cards.allocator.allocator import Allocator

AllocatorOf = Callable[[int], Allocator]


class Margins:
    """By card the highest level that may have been reached since somebody asked, and by which operations."""

    def __init__(self, allocator: AllocatorOf) -> None:
        self._allocator = allocator
        self._reach: dict[int, int] = {}
        self._names: dict[str, None] = {}

    def tell(self, what: bytes) -> None:
        """From the native part: an operation, the bytes that it may have taken besides, and the card."""
        name, amount, device = what.decode().split(" ")
        index = int(device)
        self._reach[index] = max(self._reach.get(index, 0), self._allocator(index).allocated + int(amount))
        self._names[name] = None

    def take(self, index: int) -> int:
        """The highest level that may have been reached since the last call; 0 for none."""
        return self._reach.pop(index, 0)

    def reset(self) -> None:
        self._reach.clear()
        self._names.clear()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Until the end nothing was told yet; then it is as before."""
        before = self._reach, self._names
        self._reach, self._names = {}, {}
        try:
            yield
        finally:
            self._reach, self._names = before

    def __str__(self) -> str:
        names = ", ".join(name.strip("_") for name in self._names)
        return f"memory that kernels take for themselves and that is not simulated ({names})"
