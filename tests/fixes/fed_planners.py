"""A planner of which nothing was measured, for a model that says no more than it has to."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

from torch import nn

from pytest_memleak.planner.anatomy import Anatomy
from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.planning import Planner
from pytest_memleak.planner.profile import BlockCost
from tests.planner.fed import MIB, decoder

AMPLE = 1024**4


class Configured(nn.Module):
    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)


def planner(**config: object) -> Planner:
    """Blocks that offload leave nothing on the card, so that they take less than checkpointed ones."""
    layout, profile = decoder(5)
    blocks = [{**costs, Mode.OFFLOAD: _leaving_nothing(costs[Mode.OFFLOAD])} for costs in profile.blocks]
    return Planner(
        model=Configured(**config),
        anatomy=Anatomy((), ()),
        layout=layout,
        profiles=(replace(profile, blocks=tuple(blocks)),),
        links=Links(2e10, 2e10, 4e9),
    )


def _leaving_nothing(cost: BlockCost) -> BlockCost:
    forward, backward = replace(cost.forward, grown=0), replace(cost.backward, grown=0)
    assert cost.forward.grown == 16 * MIB
    return replace(cost, forward=forward, backward=backward)
