"""What an optimizer keeps for a weight and takes for its step, tried on weights of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pytest_memleak.planner.levels import levels_of

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
