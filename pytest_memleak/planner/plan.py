"""A plan: how much of a training step stays on the card, in five numbers."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Mode(enum.Enum):
    """What becomes of the tensors that a block saves for its backward pass."""

    NONE = "none"
    """They stay."""
    CHECKPOINT = "checkpoint"
    """Only the block's input stays; the rest is computed again."""
    SWAP = "swap"
    """To the host while the next block computes, and back while the one behind it goes backward."""
    OFFLOAD = "offload"
    """To the host at once, and back when they are asked for."""


@dataclass(frozen=True)
class Plan:
    """Counts of chunks of weights, and of blocks, each in the order in which they run."""

    n_persist: int
    """The first chunks stay on the card with their gradients and their optimizer's state. The others are streamed: they
    lie on the host, where their optimizer runs too."""
    n_buffer: int
    """As many streamed chunks may be on the card at a time."""
    n_swap: int = 0
    """The first blocks swap what they save ..."""
    n_checkpoint: int = 0
    """... the next but those that offload are checkpointed ..."""
    n_offload: int = 0
    """... and between these two, blocks offload what they save. The last blocks keep everything."""

    def modes(self, blocks: int) -> tuple[Mode, ...]:
        """Of each block. What early blocks save would be held longest."""
        counts = (
            (Mode.SWAP, self.n_swap),
            (Mode.OFFLOAD, self.n_offload),
            (Mode.CHECKPOINT, self.n_checkpoint),
            (Mode.NONE, blocks - self.n_swap - self.n_offload - self.n_checkpoint),
        )
        return tuple(mode for mode, count in counts for _ in range(count))

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in vars(self).items())
