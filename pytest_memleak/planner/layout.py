"""Where a model's states lie: its blocks' weights in chunks, and the rest, which never leaves the card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Chunk:
    """Weights of one block that come and go together. Bytes are what an allocator gives for them on the card."""

    block: int
    names: tuple[str, ...]
    """Of the parameters, in the model."""
    weights: int
    gradients: int
    """Of those that are trained."""
    optimizer: int
    """What the optimizer keeps for them."""


@dataclass(frozen=True)
class Layout:
    """A model's chunks in the order in which they run: no chunk has weights of two blocks."""

    blocks: int
    chunks: tuple[Chunk, ...]

    def persistent(self, n_persist: int) -> tuple[Chunk, ...]:
        return self.chunks[:n_persist]

    def streamed(self, n_persist: int) -> tuple[Chunk, ...]:
        return self.chunks[n_persist:]

    def fewest_buffers(self, n_persist: int) -> int:
        """A block runs when all its chunks are there."""
        counts: dict[int, int] = {}
        for chunk in self.streamed(n_persist):
            counts[chunk.block] = counts.get(chunk.block, 0) + 1
        return max(counts.values(), default=0)

    @cached_property
    def of_blocks(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each block's chunks."""
        return tuple(
            tuple(number for number, chunk in enumerate(self.chunks) if chunk.block == block)
            for block in range(self.blocks)
        )
