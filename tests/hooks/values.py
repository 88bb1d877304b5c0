"""Programs whose values are looked at, and what was found."""

from __future__ import annotations

from typing import Any

from tests.conftest import Records

BUILD = """
import gc
import pytest, torch
import pytest_memleak

def build(fixed=False, width=64):
    with torch.device("meta"):
        model = torch.nn.Sequential(*[torch.nn.Linear(width, width) for _ in range(2)])
    model.to_empty(device=torch.get_default_device())
    for layer in model if fixed else ():
        layer.reset_parameters()
    return model
"""


TRAIN = (
    BUILD
    + """
class Diverges(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.sum()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(64) * ctx.factor, None

def train(model, optimizer, factors):
    for factor in factors:
        optimizer.zero_grad()
        Diverges.apply(model(torch.ones(64)), factor).backward()
        optimizer.step()
"""
)


def verdicts(records: Records) -> dict[str, str]:
    return {name: told["verdict"] for name, told in records().items()}


def of_check(told: dict[str, Any], check: str = "no_nan") -> dict[str, Any]:
    (result,) = (one for one in told["results"] if one["check"] == check)
    return dict(result)
