"""What blocks are given by the model's code: measured, and how long it counts as held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from pytest_memleak.planner.estimate import walk
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import BlockCost, Profile, Stretch
from pytest_memleak.planner.profiling import profile
from tests.planner.llamas import blocks_of
from tests.planner.small_models import LAYERS, build

TOKENS = 40
MASK = TOKENS**2
NOTHING = Stretch(0, 0)
LAYOUT = Layout(3, tuple(Chunk(block, (), 0, 0, 0) for block in range(3)))


def levels(holds: Mapping[Mode, list[dict[int, int]]], shared: Mapping[int, int], plan: Plan) -> dict[str, int]:
    """Of a step in which nothing else takes memory."""
    plain = BlockCost(NOTHING, NOTHING, 0)
    blocks = [
        {Mode.NONE: plain, **{mode: replace(plain, holds=held[block]) for mode, held in holds.items()}}
        for block in range(3)
    ]
    made = Profile("text", "fed", 0, NOTHING, tuple(blocks), NOTHING, NOTHING, NOTHING, rest={}, shared=shared)
    return {point.where: point.peak for point in walk(made, LAYOUT, plan)}


def test_a_part_is_there_until_the_first_block_that_is_given_it_has_gone_backward() -> None:
    checkpointed = {Mode.CHECKPOINT: [{0: 10}, {0: 10}, {2: 5}]}
    found = levels(checkpointed, {0: 12, 2: 5}, Plan(3, 0, n_checkpoint=3))
    assert found == {
        "before the blocks": 0,
        "forward of block 0": 17,
        "forward of block 1": 17,
        "forward of block 2": 17,
        "after the blocks": 15,
        "backward of block 2": 15,
        "backward of block 1": 10,
        "backward of block 0": 10,
        "backward of what is before the blocks": 0,
        "the optimizer's step": 0,
    }


def test_a_part_that_no_block_saves_is_gone_with_the_models_code() -> None:
    checkpointed = {Mode.CHECKPOINT: [{0: 10}, {0: 10}, {2: 5}]}
    found = levels(checkpointed, {0: 12, 2: 5}, Plan(3, 0, n_checkpoint=2))  # the last block keeps what it saves
    assert (found["forward of block 2"], found["after the blocks"]) == (17, 10)
    assert found["backward of block 1"] == found["backward of block 0"] == 10


def test_blocks_of_two_kinds_have_a_mask_each() -> None:
    """Of Gemma's four, three look at a window and the last at everything."""
    pytest.importorskip("transformers")
    model = build("gemma3_text")
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) % 400 + 10
    padded = torch.ones_like(ids)
    padded[0, :3] = 0  # or there would be no mask of everything
    batch = {"input_ids": ids, "labels": ids, "attention_mask": padded, "use_cache": False}
    found = profile(model, blocks_of(model), ["window"] * 3 + ["all"], batch)
    last = LAYERS - 1
    assert set(found.shared) == {0, last}
    assert found.shared[last] >= 2 * MASK
    for block, costs in enumerate(found.blocks):
        held = dict(costs[Mode.CHECKPOINT].holds)
        assert held.pop(last if block == last else 0) >= 2 * MASK
        assert sum(held.values()) < MASK  # numbers of positions are given to all
