"""What one step of training took, part by part: all that an estimate goes by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pytest_memleak.planner.plan import Mode


@dataclass(frozen=True)
class Stretch:
    """A part of a step. Bytes are over the level at its start."""

    peak: int
    grown: int
    """Held at its end; less than nothing where it releases more than it allocates."""
    seconds: float = 0.0


@dataclass(frozen=True)
class BlockCost:
    """What a block takes in one mode: from the moment it is called until the next one is, and on the way back."""

    forward: Stretch
    backward: Stretch
    """As if the gradients of its weights left the card one by one, at once."""
    with_gradients: int
    """The peak of its backward pass if they stay."""
    holds: Mapping[int, int] = field(default_factory=dict)
    """For its way back, of what blocks share: of each part of `Profile.shared`."""


@dataclass(frozen=True)
class Profile:
    """One step with one kind of batch, all states on the card."""

    kind: str
    """``text``, ``image``, ``audio``, ``video``."""
    how: str
    """How the numbers were got: measured or predicted."""
    base: int
    """Held on the card before the step: weights, buffers, the optimizer's state."""
    before: Stretch
    """Up to the first block: the embedding, and towers with their projectors."""
    blocks: tuple[Mapping[Mode, BlockCost], ...]
    """Of each block in the modes NONE, CHECKPOINT and OFFLOAD. SWAP takes what follows from these."""
    after: Stretch
    """From the last block to the loss and back to it."""
    end: Stretch
    """The way back of what is before the blocks."""
    optimizer: Stretch
    """Its step for all weights, over what it keeps."""
    rest: Mapping[str, int]
    """Bytes of weights that are in no block and get a gradient, by name."""
    shared: Mapping[int, int] = field(default_factory=dict)
    """Masks, positions, the first block's input, by the first block that is given them: blocks of one kind may have a
    mask of their own. The model's code holds them up to its end, and then whoever saved them until that block has gone
    backward."""

    @property
    def rest_gradients(self) -> int:
        return sum(self.rest.values())

    @property
    def all_shared(self) -> int:
        return sum(self.shared.values())

    def saved(self, block: int) -> int:
        """What leaves the card where the block does not keep what it saves."""
        costs = self.blocks[block]
        return costs[Mode.NONE].forward.grown - costs[Mode.OFFLOAD].forward.grown
