"""A model's blocks as chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

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
    counts = _uses(model)
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


def _uses(model: nn.Module) -> dict[int, int]:
    """How many modules hold a storage: emptying it would be seen by all."""
    counts: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            counts[_storage(weight)] = counts.get(_storage(weight), 0) + 1
    return counts


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
