"""A model's blocks as chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.optimizing import OptimizerCost

BLOCK = 512
"""Torch's allocator gives multiples of it."""


def layout_of(
    model: nn.Module, blocks: Sequence[nn.Module], optimizer: OptimizerCost | None = None, chunk: int | None = None
) -> Layout:
    """A block is a chunk; with `chunk`, its weights are in several of that many bytes at most (or of one weight).

    Weights that others share, and what is in no block, are in no chunk: they stay on the card.
    """
    cost = optimizer or OptimizerCost()
    names = {id(weight): name for name, weight in model.named_parameters()}
    _refuse_strangers(model, blocks, names)
    _refuse_repeated(model, blocks)
    counts = _uses(model, blocks)
    chunks = [
        Chunk(
            number,
            tuple(names[id(weight)] for weight in group),
            sum(_rounded(weight.untyped_storage().nbytes()) for weight in group),
            sum(_rounded(weight.nbytes) for weight in group if weight.requires_grad),
            cost.kept(sum(weight.nbytes for weight in group if weight.requires_grad)),
        )
        for number, block in enumerate(blocks)
        for group in _grouped([weight for weight in block.parameters() if counts[_storage(weight)] == 1], chunk)
    ]
    return Layout(len(blocks), tuple(chunks))


def _refuse_strangers(model: nn.Module, blocks: Sequence[nn.Module], names: Mapping[int, str]) -> None:
    for number, block in enumerate(blocks):
        strange = next((name for name, weight in block.named_parameters() if id(weight) not in names), None)
        if strange is not None:
            raise BadInput(
                f"block {number} ({type(block).__name__}) is not in this {type(model).__name__}: its {strange} is none "
                "of the model's weights. Give modules of the model itself: a copy has weights of its own"
            )


def _refuse_repeated(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """It would be in several places of a step, each with a mode of its own."""
    for number, block in enumerate(blocks):
        if (first := blocks.index(block)) != number:
            raise BadInput(
                f"{type(model).__name__} runs one block several times: blocks {first} and {number} are the same "
                "module, and a plan is for blocks that run once in a step: name those, Planner.of(model, blocks=[…])"
            )


def _uses(model: nn.Module, blocks: Sequence[nn.Module]) -> Counter[int]:
    """How many modules hold a storage, or blocks where these have a module in common: emptying it would be seen by
    all."""
    own = (weight for module in model.modules() for weight in module.parameters(recurse=False))
    counts = Counter(_storage(weight) for weight in own)
    return counts | Counter(_storage(weight) for block in blocks for weight in block.parameters())


def _storage(weight: nn.Parameter) -> int:
    return int(weight.untyped_storage()._cdata)


def _grouped(weights: Sequence[nn.Parameter], most: int | None) -> Iterator[list[nn.Parameter]]:
    group: list[nn.Parameter] = []
    held = 0
    for weight in weights:
        if group and most is not None and held + weight.nbytes > most:
            yield group
            group, held = [], 0
        group.append(weight)
        held += weight.nbytes
    if group:
        yield group


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
