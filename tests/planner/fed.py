"""Profiles and layouts that nobody measured."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np

from pytest_memleak.planner.completing import admissible
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import BlockCost, Profile, Stretch
from pytest_memleak.planner.triples import Triples

MIB = 1024**2


def odd_layout(random: Random, blocks: int, chunks: tuple[int, ...] = (1, 2)) -> Layout:
    """No block is like another one, and some are not trained."""
    return Layout(
        blocks,
        tuple(
            Chunk(block, (), random.randrange(1, 60), random.choice((0, random.randrange(60))), random.randrange(120))
            for block in range(blocks)
            for _ in range(random.choice(chunks))
        ),
    )


def odd_profile(random: Random, blocks: int) -> Profile:
    """Nothing in it follows from anything else, so that nothing that usually holds is relied on."""

    def stretch() -> Stretch:
        peak = random.randrange(100)
        return Stretch(peak, random.randrange(-50, peak + 1), random.choice((0.0, random.random())))

    shared = {random.randrange(blocks): random.randrange(40) for _ in range(random.randrange(4))}

    def holds() -> dict[int, int]:
        """The first block's input as well, of which the model's own code may have let go."""
        return {first: random.randrange(held + 1) for first, held in {0: 40, **shared}.items()}

    costs: list[dict[Mode, BlockCost]] = [
        {
            mode: BlockCost(stretch(), stretch(), random.randrange(150), holds())
            for mode in Mode
            if mode is not Mode.SWAP
        }
        for _ in range(blocks)
    ]
    before, after, end, optimizer = (stretch() for _ in range(4))
    return Profile(
        kind="text",
        how="fed",
        base=random.randrange(1000),
        before=before,
        blocks=tuple(costs),
        after=after,
        end=end,
        optimizer=optimizer,
        rest={"": random.randrange(20)},
        shared=shared,
    )


def odd_links(random: Random) -> Links:
    return Links(random.uniform(10, 300), random.uniform(10, 300), random.uniform(10, 300))


def decoder(
    blocks: int, *, random: Random | None = None, lora: bool = False, speed: float = 1.0
) -> tuple[Layout, Profile]:
    """In the proportions of real ones: alike blocks, or blocks that differ by up to a quarter."""

    def about(number: float) -> float:
        return number * (random.uniform(0.75, 1.25) if random else 1.0)

    chunks: list[Chunk] = []
    costs: list[dict[Mode, BlockCost]] = []
    for block in range(blocks):
        weights = int(about(400 * MIB))
        gradients = weights // 100 if lora else weights
        chunks.append(Chunk(block, (), weights, gradients, 4 * gradients))
        saves, stays, seconds, copied = int(about(600 * MIB)), 16 * MIB, about(0.03) / speed, 0.03
        again = Stretch(saves + 300 * MIB - stays, -stays, 3 * seconds)
        back = Stretch(saves + 300 * MIB - stays, -stays, 2 * seconds + copied)
        costs.append(
            {
                Mode.NONE: BlockCost(
                    Stretch(saves + 50 * MIB, saves, seconds),
                    Stretch(300 * MIB, -saves, 2 * seconds),
                    300 * MIB + gradients,
                ),
                Mode.CHECKPOINT: BlockCost(Stretch(120 * MIB, stays, seconds), again, again.peak + gradients),
                Mode.OFFLOAD: BlockCost(Stretch(150 * MIB, stays, seconds + copied), back, back.peak + gradients),
            }
        )
    base = 2000 * MIB + sum(chunk.weights + chunk.optimizer for chunk in chunks)
    before, end = Stretch(20 * MIB, 16 * MIB, 0.01), Stretch(500 * MIB, -16 * MIB, 0.01)
    after, optimizer = Stretch(3000 * MIB, 100 * MIB, 0.05), Stretch(200 * MIB, 0, 0.1)
    rest = {"": 0 if lora else 1000 * MIB}
    profile = Profile("text", "fed", base, before, tuple(costs), after, end, optimizer, rest)
    return Layout(blocks, tuple(chunks)), profile


def all_plans(layout: Layout) -> Iterator[Plan]:
    blocks, chunks = layout.blocks, len(layout.chunks)
    pairs = [(persist, buffer) for persist in range(chunks + 1) for buffer in range(chunks + 1)]
    pairs = [pair for pair in pairs if not admissible(layout, Plan(*pair))]
    for n_swap in range(blocks + 1):
        for n_checkpoint in range(blocks - n_swap + 1):
            for n_offload in range(blocks - n_swap - n_checkpoint + 1):
                for persist, buffer in pairs:
                    yield Plan(persist, buffer, n_swap, n_checkpoint, n_offload)


def all_triples(blocks: int) -> Triples:
    """All ways to give blocks their modes."""
    places = range(blocks + 1)
    ends = [(a, b, d) for a in places for b in places if b >= a for d in places if d >= b]
    return Triples(*np.array(ends).T)
