"""Which streamed chunks are on the card while a step runs: one rule, for running a plan and for estimating it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.plan import Plan


@dataclass(frozen=True)
class Moves:
    """What has to happen before a block runs, in this order."""

    dropped: tuple[int, ...]
    fetched: tuple[int, ...]
    """What the block itself needs: it waits for them."""
    ahead: tuple[int, ...] = ()
    """What the next one needs: they come while the block runs."""


@dataclass
class Residency:
    """The chunks that are there, as a step goes through the blocks and back. It begins with none.

    On the way forth a chunk makes room only when another one needs it, so that the last ones are still there when the
    way back begins. On the way back it goes as soon as its block is done. The next block's chunks come ahead where
    there is room for them beside those of the running one.
    """

    layout: Layout
    plan: Plan
    there: list[int] = field(default_factory=list)

    def forward(self, block: int) -> Moves:
        return self._moves(block, block + 1, droppable=[chunk for chunk in self.there if self._block(chunk) < block])

    def backward(self, block: int) -> Moves:
        done = tuple(chunk for chunk in self.there if self._block(chunk) > block)
        self.there = [chunk for chunk in self.there if chunk not in done]
        far = [chunk for chunk in self.there if self._block(chunk) < block - 1]
        moves = self._moves(block, block - 1, droppable=far)
        return Moves(done + moves.dropped, moves.fetched, moves.ahead)

    def end(self) -> Moves:
        """After the step weights have new values: what is on the card is of the past."""
        dropped, self.there = tuple(self.there), []
        return Moves(dropped, ())

    def _moves(self, block: int, next_one: int, droppable: list[int]) -> Moves:
        dropped: list[int] = []
        fetched = [chunk for chunk in self._streamed(block) if chunk not in self.there]
        self._make_room(len(fetched), droppable, dropped)
        self.there += fetched
        ahead = [chunk for chunk in self._streamed(next_one) if chunk not in self.there]
        if len(self.there) - len(droppable) + len(ahead) > self.plan.n_buffer:
            ahead = []
        self._make_room(len(ahead), droppable, dropped)
        self.there += ahead
        return Moves(tuple(dropped), tuple(fetched), tuple(ahead))

    def _make_room(self, wanted: int, droppable: list[int], dropped: list[int]) -> None:
        while len(self.there) + wanted > self.plan.n_buffer and droppable:
            gone = droppable.pop(0)
            self.there.remove(gone)
            dropped.append(gone)

    def _streamed(self, block: int) -> list[int]:
        if not 0 <= block < self.layout.blocks:
            return []
        return [chunk for chunk in self.layout.of_blocks[block] if chunk >= self.plan.n_persist]

    def _block(self, chunk: int) -> int:
        return self.layout.chunks[chunk].block
