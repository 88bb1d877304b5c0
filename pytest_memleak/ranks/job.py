"""What the ranks of one test are to run: written by the process that starts them, read by each of them."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_memleak.ranks.world import World

ASKED = getattr(signal, "SIGRTMIN", signal.SIGUSR2 - 5) + 5
"""The signal on which a rank writes what it is doing, and goes on: one that programs hardly use."""

TIME_IS = "ranks(timeout=…), --memleak-ranks-timeout"

_FILE = "job.json"


@dataclass(frozen=True)
class Job:
    folder: str
    """Of this one attempt: what the ranks have to say comes here."""
    nodeid: str
    path: str
    """What pytest is to collect, to find the test there."""
    args: tuple[str, ...]
    """The command line of the run that it is a part of."""
    where: str
    sys_path: tuple[str, ...]
    size: int
    nodes: int
    """How many machines are played, each with its share of the ranks."""
    backend: str | None
    """Of the process group; None: the test makes it itself."""
    timeout: float
    """Seconds from the start of the processes."""
    time_is: str = TIME_IS
    """What has set that, in words."""
    cards: tuple[str, ...] = ()
    """The GPUs that are theirs, as CUDA_VISIBLE_DEVICES names them; empty: it is as it was."""
    more_args: tuple[str, ...] = ()
    """Of the command line, what is only for ranks."""
    parent: int = 0
    """The process that starts them."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the command line, what is otherwise for a rank."""

    def save(self) -> None:
        Path(self.folder, _FILE).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: str) -> Job:
        data: dict[str, Any] = json.loads(Path(folder, _FILE).read_text(encoding="utf-8"))
        return cls(**data | {name: tuple(data[name]) for name in ("args", "more_args", "sys_path", "cards")})

    def world(self, rank: int) -> World:
        """Of one rank, as the machines are played."""
        local = self.size // self.nodes
        return World(rank, self.size, rank % local, local)

    def cards_of(self, world: World) -> tuple[str, ...]:
        """The cards of its machine: the ranks of one machine share them, each with one of its own."""
        first = world.rank - world.local_rank
        return self.cards[first : first + world.local_size]

    def told(self, rank: int) -> Path:
        """Where a rank writes its reports, one a line, as they are made."""
        return Path(self.folder, f"rank-{rank}.jsonl")

    def stacks(self, rank: int) -> Path:
        """Where a rank that hangs or is stopped writes what it was doing."""
        return Path(self.folder, f"rank-{rank}.stacks")

    def process(self, rank: int) -> Path:
        """Its process id, as soon as it runs."""
        return Path(self.folder, f"rank-{rank}.pid")

    def over(self, rank: int) -> Path:
        """Is there when a rank has nothing more to say."""
        return Path(self.folder, f"rank-{rank}.over")
