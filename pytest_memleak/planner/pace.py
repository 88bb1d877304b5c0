"""How long a step takes under a plan: rough, and good enough to tell which of two plans is the faster one.

After ProTrain's model (arXiv 2406.08334): the way forth, the way back, and the optimizer on the card and on the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.residency import Moves, Residency


@dataclass(frozen=True)
class Links:
    """What the host does in a second, in bytes."""

    to_card: float
    to_host: float
    host_optimizer: float
    """Of trained weights, as their gradients are: how much the optimizer's step on the host goes through."""

    def __post_init__(self) -> None:
        for name, speed in vars(self).items():
            if not speed > 0:
                raise BadInput(f"{name}={speed!r} is no speed: it has to be more than 0 bytes/s")


def step_seconds(profile: Profile, layout: Layout, plan: Plan, links: Links) -> float:
    """Copies on a stream of their own take time only where they outlast the block that runs meanwhile."""
    return _Step(profile, layout, plan, links).seconds()


def mean_seconds(profiles: Iterable[Profile], layout: Layout, plan: Plan, links: Links) -> float:
    """Of all kinds of batches, each as frequent as any other: nothing tells how often they come."""
    all_kinds = [step_seconds(profile, layout, plan, links) for profile in profiles]
    return sum(all_kinds) / len(all_kinds)


def optimizer_seconds(profile: Profile, layout: Layout, plan: Plan, links: Links) -> float:
    """Of a step, what comes after the way back."""
    return _Step(profile, layout, plan, links).optimizer()


def computing(profile: Profile, block: int, mode: Mode, links: Links) -> tuple[float, float]:
    """A block's way forth and back, with the copies that are made on the computing stream itself.

    Where a checkpointed block runs again, its seconds back were measured with that, and so were the copies of a block
    that offloads. For one that nobody has timed they are added to what a block takes that keeps everything. A block
    that swaps has as many tensors to see to as one that offloads, but for the copies themselves.
    """
    plain = profile.blocks[block][Mode.NONE]
    if mode is Mode.NONE:
        return plain.forward.seconds, plain.backward.seconds
    if mode is Mode.CHECKPOINT:
        cost = profile.blocks[block][mode]
        return cost.forward.seconds, cost.backward.seconds
    leaves, returns = moved(profile, block) / links.to_host, moved(profile, block) / links.to_card
    timed = profile.blocks[block][Mode.OFFLOAD]
    forth = timed.forward.seconds or plain.forward.seconds + leaves
    back = timed.backward.seconds or plain.backward.seconds + returns
    if mode is Mode.SWAP:
        return max(plain.forward.seconds, forth - leaves), max(plain.backward.seconds, back - returns)
    return forth, back


def moved(profile: Profile, block: int) -> int:
    """To the host and back. A block that offloads may hold more than one that keeps what it saves: then it is none."""
    return max(profile.saved(block), 0)


class _Step:
    def __init__(self, profile: Profile, layout: Layout, plan: Plan, links: Links) -> None:
        self._profile = profile
        self._layout = layout
        self._plan = plan
        self._links = links
        self._modes = plan.modes(layout.blocks)
        self._computing = [computing(profile, block, mode, links) for block, mode in enumerate(self._modes)]
        self._residency = Residency(layout, plan)

    def seconds(self) -> float:
        profile, blocks = self._profile, range(self._layout.blocks)
        last = self._layout.blocks - 1
        forth = [self._forward(block) for block in blocks]
        back = [self._backward(block) for block in reversed(blocks)]
        # Nothing runs beside the last block's copies: it is the next one to go backward.
        turn = self._swapped(last) / self._links.to_host + self._swapped(last) / self._links.to_card
        around = profile.before.seconds + profile.after.seconds + profile.end.seconds
        return around + sum(forth) + turn + sum(back) + self.optimizer()

    def _forward(self, block: int) -> float:
        moves = self._residency.forward(block)
        leaves = self._swapped(block - 1) / self._links.to_host
        return self._waits(moves) + max(self._computing[block][0], self._comes(moves), leaves)

    def _backward(self, block: int) -> float:
        """What the block before had swapped comes on the stream on which its weights come."""
        moves = self._residency.backward(block)
        comes = self._comes(moves) + self._swapped(block - 1) / self._links.to_card
        streamed = (chunk for chunk in self._layout.of_blocks[block] if chunk >= self._plan.n_persist)
        leaves = sum(self._layout.chunks[chunk].gradients for chunk in streamed) / self._links.to_host
        return self._waits(moves) + max(self._computing[block][1], comes, leaves)

    def _waits(self, moves: Moves) -> float:
        return sum(self._layout.chunks[chunk].weights for chunk in moves.fetched) / self._links.to_card

    def _comes(self, moves: Moves) -> float:
        return sum(self._layout.chunks[chunk].weights for chunk in moves.ahead) / self._links.to_card

    def _swapped(self, block: int) -> int:
        return moved(self._profile, block) if block >= 0 and self._modes[block] is Mode.SWAP else 0

    def optimizer(self) -> float:
        """Both begin when all gradients are there, and neither waits for the other."""
        streamed = sum(chunk.gradients for chunk in self._layout.streamed(self._plan.n_persist))
        trained = sum(chunk.gradients for chunk in self._layout.chunks) + self._profile.rest_gradients
        here = (trained - streamed) / trained if trained else 0.0
        return max(self._profile.optimizer.seconds * here, streamed / self._links.host_optimizer)
