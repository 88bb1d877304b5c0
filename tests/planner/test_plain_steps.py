"""Steps of a model that is nobody's but the user's: what comes behind its last block need not be a module."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules

from pytest_memleak.meters import shared
from pytest_memleak.planner import Plan, Planner
from pytest_memleak.planner.levels import levels_of

BLOCKS, VOCABULARY = 4, 500
IDS = torch.arange(128).reshape(2, 64)
BATCH = {"ids": IDS, "labels": IDS}


@dataclass
class Output:
    loss: torch.Tensor


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.down(functional.gelu(self.up(hidden)))
        return hidden + added


class Tied(nn.Module):
    """Its head is a product with the embedding."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList([Layer(width) for _ in range(BLOCKS)])

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> Output:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits = hidden @ self.embed.weight.T
        return Output(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


@pytest.mark.skipif(not shared.cpu_memory().can_enforce, reason="peaks on the CPU need the exact engine")
def test_a_head_that_is_a_function_is_no_part_of_the_blocks() -> None:
    before = dict(torch_modules._global_forward_pre_hooks)
    planner = Planner.of(Tied(), batches={"text": BATCH})
    assert dict(torch_modules._global_forward_pre_hooks) == before
    assert planner.profiles[0].after.peak > IDS.numel() * VOCABULARY * 4, "the logits are behind the blocks"
    for plan in (Plan(BLOCKS, 0), Plan(0, 1, n_checkpoint=BLOCKS), Plan(0, 2, n_offload=BLOCKS)):
        assert planner.estimate(plan).peak == pytest.approx(taken(planner, plan), rel=0.02), plan


@pytest.mark.parametrize("share", [0.5, 0.99, 2])
def test_a_search_agrees_with_its_estimates(share: float) -> None:
    """Its blocks share nothing, and its code does not hold what the first one is given: that block alone does."""
    planner = Planner.of(Tied(), batches={"text": BATCH})
    whole = planner.estimate(Plan(BLOCKS, 0)).peak
    found = planner.search(round(share * whole), margin=1.0)
    assert found.peak == planner.estimate(found.plan).peak


def taken(planner: Planner, plan: Plan) -> int:
    with planner.train(plan) as training, contextlib.closing(levels_of(torch.device("cpu"))) as levels:
        for _ in range(2):
            levels.highest()
            planner.model(**BATCH).loss.backward()
            training.finish()
            training.give_up()
        return levels.highest()
