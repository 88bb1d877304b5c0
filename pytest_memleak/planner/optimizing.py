"""What an optimizer keeps for a weight and takes for its step, tried on weights of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pytest_memleak.planner.levels import levels_of
from pytest_memleak.planner.profile import Profile

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
_ENOUGH = 2**30
"""Bytes of weights. What an optimizer takes goes by them, and the card may be as good as full."""


@dataclass(frozen=True)
class OptimizerCost:
    """In bytes for a byte of weights."""

    kept_for_a_byte: float = 0.0
    peak_for_a_byte: float = 0.0

    def kept(self, weights: int) -> int:
        return round(self.kept_for_a_byte * weights)

    def peak(self, weights: int) -> int:
        return round(self.peak_for_a_byte * weights)


def optimizer_cost(make: MakeOptimizer, weights: Sequence[nn.Parameter], device: torch.device) -> OptimizerCost:
    """Goes by weights of the same shapes and types, and as many as tell."""
    if not weights:
        return OptimizerCost()
    bytes_up_to = itertools.accumulate(weight.nbytes for weight in weights)
    some = [weight for weight, held in zip(weights, bytes_up_to, strict=True) if held <= _ENOUGH] or weights[:1]
    alike = [nn.Parameter(torch.zeros_like(weight.data, device=device)) for weight in some]
    for weight in alike:
        weight.grad = torch.zeros_like(weight)
    total = sum(weight.nbytes for weight in alike)
    levels = levels_of(device)
    try:
        before = levels.now()
        optimizer = make(alike)
        optimizer.step()
        kept = levels.now() - before
        levels.highest()
        optimizer.step()
        peak = levels.highest() - before - kept
    finally:
        levels.close()
    return OptimizerCost(max(0, kept) / total, max(0, peak) / total)


def trained_beside(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[str, int]:
    """Bytes of weights that are in no block, by name."""
    in_blocks = {id(one) for block in blocks for one in block.parameters()}
    trained = ((name, one) for name, one in model.named_parameters() if one.requires_grad)
    return {name: one.nbytes for name, one in trained if id(one) not in in_blocks}


def with_what_stays(
    profiles: Sequence[Profile], optimizer: OptimizerCost, others: Mapping[str, int] | None = None
) -> tuple[Profile, ...]:
    """Batches of one kind leave behind what is there in steps with another: the states of weights that they train, and
    libraries' workspaces, of which the last profile has seen all. `others`: weights that nobody knows about."""
    trained = dict(others or {})
    for one in profiles:
        trained |= one.rest
    bare = max(one.base - optimizer.kept(one.rest_gradients) for one in profiles)
    return tuple(replace(one, base=bare + optimizer.kept(sum(trained.values()))) for one in profiles)
