"""A fused kernel for LoRA's MLP, as axolotl has one, trains under offload as without: to the bit, on the CPU.

It is an autograd function with a backward pass of its own, which takes frozen weights from where it has put them by
itself, past what autograd saves. Those of a block that is streamed are not on the card between the two passes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.states import layout_of
from tests.planner.llamas import BLOCKS, adamw, batches, blocks_of, llama

pytest.importorskip("transformers")

OPTIMIZER = adamw(lr=1e-2)
OFFLOADED = [
    Plan(BLOCKS, 0, n_offload=BLOCKS),
    Plan(BLOCKS, 0, n_swap=BLOCKS),
    Plan(0, 1, n_offload=BLOCKS),
    Plan(0, 2, n_swap=BLOCKS),
    Plan(1, 2, n_swap=2, n_checkpoint=2, n_offload=1),
]


class _Fused(torch.autograd.Function):
    """``down(silu(gate(x)) * up(x))`` with an adapter on `down`."""

    @staticmethod
    def forward(ctx: Any, x: Any, gate: Any, up: Any, down: Any, a: Any, b: Any) -> Any:
        gated, raised = x @ gate.T, x @ up.T
        inner = nn.functional.silu(gated) * raised
        ctx.weights = gate, up, down
        ctx.save_for_backward(gated, raised, a, b)
        return inner @ down.T + (inner @ a.T) @ b.T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (given,) = gradients
        gate, up, down = ctx.weights
        gated, raised, a, b = ctx.saved_tensors
        opened = torch.sigmoid(gated)
        active = gated * opened
        inner = (active * raised).flatten(0, 1)
        flat = given.flatten(0, 1)
        back = given @ down + (given @ b) @ a
        to_gated = back * raised * (opened + active * (1 - opened))
        to_x = to_gated @ gate + (back * active) @ up
        return to_x, None, None, None, (flat @ b).T @ inner, flat.T @ (inner @ a.T)


class FusedMlp(nn.Module):
    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(4, self.down_proj.in_features) / 10)
        self.b = nn.Parameter(torch.randn(self.down_proj.out_features, 4) / 10)

    def forward(self, x: torch.Tensor) -> Any:
        return _Fused.apply(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight, self.a, self.b)  # type: ignore[no-untyped-call]


class PlainMlp(FusedMlp):
    def forward(self, x: torch.Tensor) -> Any:
        inner = nn.functional.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(inner) + (inner @ self.a.T) @ self.b.T


def with_mlp(made: type[FusedMlp]) -> Any:
    model = llama()
    torch.manual_seed(1)
    for block in blocks_of(model):
        mlp: Any = block.mlp
        block.mlp = made(mlp)
    return model.train()


def losses_of(made: type[FusedMlp], plan: Plan) -> list[float]:
    model = with_mlp(made)
    blocks = blocks_of(model)
    losses = []
    with Training(model, blocks, layout_of(model, blocks), plan, OPTIMIZER) as training:
        for batch in batches(6):
            loss = model(**batch).loss
            loss.backward()
            training.step()
            losses.append(loss.item())
    return losses


def test_it_computes_what_it_replaces() -> None:
    stays = Plan(BLOCKS, 0)
    assert losses_of(FusedMlp, stays) == pytest.approx(losses_of(PlainMlp, stays), rel=1e-4)


@pytest.mark.parametrize("plan", OFFLOADED, ids=str)
def test_under_offload(plan: Plan) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads come in any order
    try:
        expected = losses_of(FusedMlp, Plan(BLOCKS, 0))
        assert expected[-1] < expected[0]
        assert losses_of(FusedMlp, plan) == expected
    finally:
        torch.set_num_threads(threads)
