"""What the driver of the cards tells: which there are, how much of each is in use, and by whom.

A protocol, so that all that is decided by it can be tested with readings that are fed. torch has no part in it: it
would make a context, and would see only the cards that this process may use.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Device:
    key: str
    """Its UUID: the same for every process, whatever number it has there."""
    name: str
    total: int
    """Bytes that programs can have, contexts included."""
    sliced: bool = False
    """In MIG mode: programs see slices of it, of whose memory the card's own readings say nothing."""
    trouble: str = ""
    """Why nothing can be told of it, and none of it is given out. Without a key, CUDA may not count it."""


class Driver(Protocol):
    def devices(self) -> tuple[Device, ...]:
        """All cards of the machine, in the order of their numbers."""

    def used(self, key: str) -> int:
        """Bytes of a card that somebody has. `Unavailable`: the driver does not tell any more."""

    def processes(self, key: str) -> Mapping[int, int] | None:
        """Bytes of each process on the card, by its number; None where the driver does not tell."""


@functools.cache
def find() -> Driver | None:
    """The driver of NVIDIA's cards; None without one. Other makers' cards are not shared."""
    from pytest_memleak.workers.nvml import Nvml, NvmlError

    try:
        return Nvml()
    except (NvmlError, OSError):
        return None
