"""Which rank of how many this process is: of a world that `@pytest.mark.ranks` started, or of an outer torchrun's.

Nothing here imports torch: what launchers tell is in the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    local_size: int
    """How many ranks are on this machine, or on the part of it that plays one."""

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}"


def current() -> World | None:
    """None in a process that is nobody's rank."""
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return World(rank, size, int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    except (KeyError, ValueError):
        return None


def joined() -> World | None:
    """The world of an outer torchrun that has started this process, as one of many."""
    return current() if "TORCHELASTIC_RUN_ID" in os.environ else None
