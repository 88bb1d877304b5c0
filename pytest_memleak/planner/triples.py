"""Ways to give blocks their modes, many at once: blocks of one mode follow each other, so where each ends says all.

It needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.streams import Ints

Number = TypeVar("Number", np.int64, np.float64)

ORDER = (Mode.SWAP, Mode.OFFLOAD, Mode.CHECKPOINT, Mode.NONE)
"""Of the rows of all tables."""
SWAPPED = np.array([[1], [0], [0], [0]])


@dataclass(frozen=True)
class Triples:
    """The blocks at which others cease to swap, to offload, and to be checkpointed."""

    swap: Ints
    offload: Ints
    checkpoint: Ints

    def __len__(self) -> int:
        return len(self.swap)

    def __getitem__(self, chosen: Ints) -> Triples:
        return Triples(self.swap[chosen], self.offload[chosen], self.checkpoint[chosen])

    def edges(self) -> tuple[Ints, Ints, Ints]:
        return self.swap, self.offload, self.checkpoint

    def first_unswapped(self) -> Ints:
        """The mode of the first block that does not swap, as a row: the block before it may swap beside it."""
        result: Ints = np.where(self.offload > self.swap, 1, np.where(self.checkpoint > self.swap, 2, 3))
        return result


def running_sums(rows: npt.NDArray[Number]) -> npt.NDArray[Number]:
    return np.concatenate([np.zeros_like(rows[..., :1]), np.cumsum(rows, axis=-1)], axis=-1)
