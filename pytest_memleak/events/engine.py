"""What the exact engine and the tracker have in common, so that a meter can stand on either."""

from __future__ import annotations

from typing import Protocol

import torch


class CpuEngine(Protocol):
    """A source of truth about the memory of CPU tensors."""

    how: str
    can_enforce: bool
    """Whether `set_cap` refuses allocations."""

    def begin(self) -> None:
        """Somebody reads from now on."""

    def end(self) -> None:
        """Nobody reads any more."""

    def current(self) -> int: ...

    def take_peak(self) -> int:
        """The highest level since the last call; starts anew from the level now."""

    def refusals(self) -> int: ...

    def set_cap(self, limit: int | None) -> None: ...

    def sequence(self) -> int:
        """A mark for `live_since`: the number of the latest allocation."""

    def live_since(self, mark: int) -> list[tuple[int, int]]:
        """Address and bytes of what was allocated after `mark` and is alive; with 0, of all that is known."""

    def knows(self, storage: torch.UntypedStorage) -> bool:
        """Whether the storage's memory is in the count."""

    def adopt(self, storage: torch.UntypedStorage) -> bool:
        """Counts a storage that was allocated unseen; False if that is not the CPU allocator's memory."""

    def foreign(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage that it does not know is nothing it was meant to see: a file, numpy's memory."""

    def blindness(self, missed: list[torch.UntypedStorage]) -> str | None:
        """Why the numbers cannot be trusted, given the storages alive that it should know and does not."""
