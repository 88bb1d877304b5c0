"""A model's blocks as chunks, and what is left on the card by steps with other kinds of batches."""

from __future__ import annotations

import copy
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.optimizing import OptimizerCost, trained_beside, with_what_stays
from pytest_memleak.planner.states import layout_of
from tests.planner.fed import odd_profile
from tests.planner.llamas import blocks_of, llama
from tests.planner.small_models import Plain, plain_block, plain_blocks


def test_tied_weights_stay_where_they_are() -> None:
    """What two modules hold is in no chunk: emptying it would be seen by both."""
    pytest.importorskip("transformers")
    model = llama(tie_word_embeddings=True)
    blocks: list[Any] = list(blocks_of(model))
    blocks[1].self_attn.q_proj.weight = blocks[0].self_attn.q_proj.weight
    names = [name for chunk in layout_of(model, blocks).chunks for name in chunk.names]
    assert not any("q_proj" in name and (".0." in name or ".1." in name) for name in names)
    assert any("layers.2.self_attn.q_proj" in name for name in names)


def test_blocks_of_another_model_are_refused() -> None:
    blocks = plain_blocks(3)
    model = Plain(blocks=blocks)
    with pytest.raises(BadInput, match=r"^block 2 \(Plain\) is not in this Plain: its up\.weight is none of the "):
        layout_of(model, [*list(blocks)[:2], copy.deepcopy(blocks[2])])
    assert len(layout_of(model, list(blocks)).chunks) == 3


def test_what_is_trained_beside_the_blocks() -> None:
    blocks, frozen = plain_blocks(2), plain_block().requires_grad_(False)
    assert trained_beside(Plain(blocks=blocks, tower=plain_block(), frozen=frozen), blocks) == {
        "tower.up.weight": 256,
        "tower.up.bias": 32,
        "tower.down.weight": 256,
        "tower.down.bias": 32,
    }


def test_states_of_what_one_kind_trains_and_workspaces_are_there_in_steps_with_another() -> None:
    adamw = OptimizerCost(kept_for_a_byte=2.0)
    made = odd_profile(Random(0), 2)
    text = replace(made, base=1000 + 2 * 10, rest={"embedding": 10})
    image = replace(made, base=1000 + 2 * 15 + 7, rest={"embedding": 10, "tower": 5})
    assert [one.base for one in with_what_stays([text, image], adamw)] == [1000 + 2 * 15 + 7] * 2
    assert [one.base for one in with_what_stays([text], adamw, {"embedding": 10, "tower": 5})] == [1000 + 2 * 15]
    # A step goes through the weights that have a gradient in it.
    assert [one.rest_gradients for one in with_what_stays([text, image], adamw)] == [10, 15]


def test_what_blocks_have_in_common_stays_where_it_is() -> None:
    """One module in several blocks: each would take it away from the others."""
    common = plain_block()
    blocks = [Plain(own=plain_block(), common=common) for _ in range(3)]
    layout = layout_of(Plain(blocks=nn.ModuleList(blocks)), blocks)
    assert [{name.split(".")[2] for name in chunk.names} for chunk in layout.chunks] == [{"own"}] * 3


def test_a_block_that_runs_several_times_is_refused() -> None:
    once = plain_block()
    blocks = [once, plain_block(), once]
    with pytest.raises(BadInput, match=r"^Plain runs one block several times: blocks 0 and 2 are the same module"):
        layout_of(Plain(layers=nn.ModuleList(blocks)), blocks)
