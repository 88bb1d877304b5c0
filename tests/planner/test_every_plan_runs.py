"""Whatever one number of a plan is set to, what it is completed into runs, and gives what the model gives without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from pytest_memleak.planner.completing import KNOBS, complete
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.states import layout_of

WIDTH = 4


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)) for _ in range(count)
        )

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            given = given + block(given)
        return given.square().mean()


def made(count: int) -> Blocks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blocks(count)


def gradients(model: Blocks, plan: Plan | None = None) -> tuple[float, Sequence[torch.Tensor]]:
    """With the loss: those of weights that are on the host have to be looked for there."""
    given = torch.linspace(-1, 1, 3 * WIDTH).reshape(3, WIDTH)
    weights = list(model.parameters())
    if plan is None:
        loss = model(given)
        loss.backward()
        return loss.item(), [weight.grad for weight in weights if weight.grad is not None]
    layout = layout_of(model, list(model.blocks))
    with Training(model, list(model.blocks), layout, plan, lambda given: torch.optim.SGD(given, lr=1.0)) as training:
        loss = model(given)
        loss.backward()
        training.step()
    return loss.item(), weights


@pytest.mark.parametrize("count", [4, 5, 8, 16, 33, 64])
def test_each_number_by_itself(count: int) -> None:
    loss, expected = gradients(made(count))
    before = [weight.detach().clone() for weight in made(count).parameters()]
    model = made(count)
    layout = layout_of(model, list(model.blocks))
    ran = set()
    for knob in KNOBS:
        # All of them for small models, and for large ones those at the ends and some between.
        for value in sorted({*range(min(count, 9)), *range(0, count, 7), count - 1, count}):
            if knob == "n_buffer" and value == 0:
                continue  # nothing else can be streamed then: all has to persist, which is a plan of its own
            plan, filled_in = complete(layout, **{knob: value})
            assert getattr(plan, knob) == value
            assert filled_in
            if plan in ran:
                continue
            ran.add(plan)
            found_loss, after = gradients(made(count), plan)
            assert found_loss == loss, plan
            # One step of SGD at a rate of 1 takes the gradient away.
            assert all(
                torch.equal(old - gradient, new) for old, gradient, new in zip(before, expected, after, strict=True)
            ), plan
    assert len(ran) > 4
