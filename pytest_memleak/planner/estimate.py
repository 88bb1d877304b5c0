"""The highest level of a step under a plan, from a profile of the same step without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import BlockCost, Profile
from pytest_memleak.planner.residency import Moves, Residency


@dataclass(frozen=True)
class Point:
    """A part of the step, and the highest level in it."""

    where: str
    peak: int


def estimate_peak(profiles: Iterable[Profile], layout: Layout, plan: Plan) -> int:
    """In bytes allocated on the card, over all kinds of batches that were profiled."""
    return max(point.peak for profile in profiles for point in walk(profile, layout, plan))


def highest(profiles: Iterable[Profile], layout: Layout, plan: Plan) -> Point:
    """Where that is."""
    return max((point for profile in profiles for point in walk(profile, layout, plan)), key=lambda point: point.peak)


def walk(profile: Profile, layout: Layout, plan: Plan) -> Iterator[Point]:
    """From the start of a step to its end: what is there, and how much each part takes on top."""
    return _Walk(profile, layout, plan).points()


class _Walk:
    def __init__(self, profile: Profile, layout: Layout, plan: Plan) -> None:
        self._profile = profile
        self._layout = layout
        self._plan = plan
        self._modes = plan.modes(layout.blocks)
        self._residency = Residency(layout, plan)
        self._level = profile.base - sum(chunk.weights + chunk.optimizer for chunk in layout.streamed(plan.n_persist))

    def points(self) -> Iterator[Point]:
        profile, last = self._profile, self._layout.blocks - 1
        yield self._part("before the blocks", profile.before.peak, profile.before.grown)
        self._level += profile.all_shared
        leaving: list[int] = []
        for block in range(self._layout.blocks):
            # A swapped block's tensors are gone when the block after it is done.
            while leaving and leaving[0] < block - 1:
                self._level -= profile.saved(leaving.pop(0))
            self._move(self._residency.forward(block))
            forward = self._cost(block).forward
            yield self._part(f"forward of block {block}", forward.peak, forward.grown)
            if self._modes[block] is Mode.SWAP:
                leaving.append(block)
        self._level -= sum(map(profile.saved, leaving))
        held = self._held()
        self._level -= profile.all_shared - sum(held.values())
        yield self._part("after the blocks", profile.after.peak, profile.after.grown)
        self._bring_back(last)
        for block in range(last, -1, -1):
            self._move(self._residency.backward(block))
            self._bring_back(block - 1)
            cost, stay = self._cost(block), sum(chunk.gradients for chunk in self._persistent(block))
            peak = cost.backward.peak + min(stay, cost.with_gradients - cost.backward.peak)
            yield self._part(f"backward of block {block}", peak, cost.backward.grown + stay - held.get(block, 0))
        self._move(self._residency.end())
        yield self._part("backward of what is before the blocks", profile.end.peak, profile.end.grown)
        yield self._part("the optimizer's step", self._of_optimizer(), 0)

    def _part(self, where: str, peak: int, grown: int) -> Point:
        point = Point(where, self._level + peak)
        self._level += grown
        return point

    def _cost(self, block: int) -> BlockCost:
        """A swapped block runs as one that keeps what it saves: its tensors come and go between."""
        mode = self._modes[block]
        return self._profile.blocks[block][Mode.NONE if mode is Mode.SWAP else mode]

    def _held(self) -> dict[int, int]:
        """Of what blocks share, for the way back. Any block that holds a part may be the last one to let it go. The
        first block may hold its input where the model's own code has let go of it."""
        costs = [self._cost(block) for block in range(self._layout.blocks)]
        return {first: max(cost.holds.get(first, 0) for cost in costs) for first in {0, *self._profile.shared}}

    def _bring_back(self, block: int) -> None:
        if block >= 0 and self._modes[block] is Mode.SWAP:
            self._level += self._profile.saved(block)

    def _move(self, moves: Moves) -> None:
        chunks = self._layout.chunks
        self._level -= sum(chunks[chunk].weights for chunk in moves.dropped)
        self._level += sum(chunks[chunk].weights for chunk in (*moves.fetched, *moves.ahead))

    def _persistent(self, block: int) -> list[Chunk]:
        return [self._layout.chunks[chunk] for chunk in self._layout.of_blocks[block] if chunk < self._plan.n_persist]

    def _of_optimizer(self) -> int:
        """Its step takes as much as it has weights to go through."""
        trained = sum(chunk.gradients for chunk in self._layout.chunks) + self._profile.rest_gradients
        if not trained:
            return 0
        here = trained - sum(chunk.gradients for chunk in self._layout.streamed(self._plan.n_persist))
        return self._profile.optimizer.peak * here // trained
