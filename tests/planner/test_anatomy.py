"""The decoder's blocks and the towers: of small models of many families, as they are and as PEFT wraps them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pytest_memleak.planner.anatomy import Anatomy, anatomy
from tests.planner.small_models import LAYERS, build, plain_block, with_adapters

Towers = list[tuple[str, str, str]]

VISUAL: Towers = [("visual", "image", "tower")]
IDEFICS: Towers = [("vision_model", "image", "tower"), ("connector", "image", "projector")]
VISION: Towers = [("vision_tower", "image", "tower"), ("multi_modal_projector", "image", "projector")]
AUDIO: Towers = [("audio_tower", "audio", "tower"), ("multi_modal_projector", "audio", "projector")]

FAMILIES: dict[str, tuple[str, int, Towers]] = {
    # The class of the blocks, of how many shapes they are, and the towers.
    "qwen2": ("Qwen2DecoderLayer", 1, []),
    "qwen3": ("Qwen3DecoderLayer", 1, []),
    "llama": ("LlamaDecoderLayer", 1, []),
    "gpt2": ("GPT2Block", 1, []),
    "gemma3_text": ("Gemma3DecoderLayer", 2, []),  # three look at a window
    "qwen3_moe": ("Qwen3MoeDecoderLayer", 2, []),  # the first has no experts
    "mixtral": ("MixtralDecoderLayer", 1, []),
    "gpt_oss": ("GptOssDecoderLayer", 2, []),  # every other one looks at a window
    "modernbert_decoder": ("ModernBertDecoderLayer", 2, []),  # the first has no norm
    "t5": ("T5Block", 2, []),  # the first has the table of positions
    "qwen2_vl": ("Qwen2VLDecoderLayer", 1, VISUAL),
    "qwen2_5_vl": ("Qwen2_5_VLDecoderLayer", 1, VISUAL),
    "qwen3_vl": ("Qwen3VLTextDecoderLayer", 1, VISUAL),
    "qwen3_5": ("Qwen3_5DecoderLayer", 2, VISUAL),  # three are linear
    "idefics3": ("LlamaDecoderLayer", 1, IDEFICS),
    "smolvlm": ("LlamaDecoderLayer", 1, IDEFICS),
    "gemma3": ("Gemma3DecoderLayer", 2, VISION),
    "llava": ("LlamaDecoderLayer", 1, VISION),
    "qwen2_audio": ("Qwen2DecoderLayer", 1, AUDIO),
    "voxtral": ("LlamaDecoderLayer", 1, AUDIO),
    "granite_speech": (
        "GraniteDecoderLayer",
        1,
        [("encoder", "audio", "tower"), ("projector", "audio", "projector")],
    ),
    "whisper": ("WhisperDecoderLayer", 1, [("encoder", "audio", "tower")]),
    "qwen2_5_omni": ("Qwen2_5OmniDecoderLayer", 1, [("audio_tower", "audio", "tower"), *VISUAL]),
}


def leaves(found: Anatomy) -> Towers:
    """Releases differ in where a tower stands."""
    return [(tower.name.rpartition(".")[2], tower.modality, tower.part) for tower in found.towers]


def check_names(model: nn.Module, found: Anatomy) -> None:
    parts: list[Any] = [*found.blocks, *found.towers]
    for part in parts:
        assert model.get_submodule(part.name) is part.module


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_of_a_family(family: str) -> None:
    model = build(family)
    found = anatomy(model)
    classes, shapes, towers = FAMILIES[family]
    assert [type(block.module).__name__ for block in found.blocks] == [classes] * LAYERS
    assert [block.name.rpartition(".")[2] for block in found.blocks] == [str(number) for number in range(LAYERS)]
    assert len({block.shape for block in found.blocks}) == shapes
    assert leaves(found) == towers
    check_names(model, found)


def test_a_part_that_has_the_config_of_the_whole_is_no_tower_by_that() -> None:
    """Which says that it is about speech."""
    model = build("granite_speech")
    model.beside = plain_block()
    model.beside.config = model.config
    assert leaves(anatomy(model)) == FAMILIES["granite_speech"][2]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3_moe", "idefics3", "gemma3", "qwen3_vl", "voxtral"])
def test_adapters_change_names_alone(family: str) -> None:
    plain = anatomy(build(family))
    model = with_adapters(build(family))
    found = anatomy(model)
    assert [block.name for block in found.blocks] == [f"base_model.model.{block.name}" for block in plain.blocks]
    assert leaves(found) == leaves(plain)
    check_names(model, found)
    assert found.blocks[-1].shape not in {block.shape for block in plain.blocks}
    assert len({block.shape for block in found.blocks}) == len({block.shape for block in plain.blocks})


def test_shapes_are_those_of_layers_that_take_the_same() -> None:
    """Of Gemma's four, three look at a window and the last at everything, with the same weights."""
    shapes, again = ([block.shape for block in anatomy(build("gemma3_text")).blocks] for _ in range(2))
    assert shapes[0] == shapes[1] == shapes[2] != shapes[3]
    assert again == shapes


def test_a_frozen_block_or_one_of_another_precision_has_another_shape() -> None:
    model = build("llama")
    blocks = anatomy(model).blocks
    blocks[1].module.requires_grad_(False)
    blocks[2].module.to(torch.bfloat16)
    first, frozen, half, last = [block.shape for block in anatomy(model).blocks]
    assert first == last
    assert len({first, frozen, half}) == 3


def test_dropout_makes_another_shape_where_it_drops() -> None:
    model = build("gpt2")
    for number, rate in enumerate((0.1, 0.2, 0.0, 0.1)):
        model.transformer.h[number].mlp.dropout.p = rate
    ten, twenty, none, _ = [block.shape for block in anatomy(model).blocks]
    assert ten == twenty != none


def test_a_heavier_list_that_is_not_as_long_as_the_config_says_is_not_the_blocks() -> None:
    model = build("llama")
    model.model.of_ngrams = nn.ModuleList([nn.Embedding(10_000, 64) for _ in range(LAYERS + 1)])
    assert [type(block.module).__name__ for block in anatomy(model).blocks] == ["LlamaDecoderLayer"] * LAYERS


def test_a_model_of_one_layer_has_one_block() -> None:
    model = build("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    assert [block.name for block in anatomy(model).blocks] == ["model.layers.0"]


def test_layers_that_were_cut_off_after_the_config_was_read_do_not_matter() -> None:
    model = build("llama")
    del model.model.layers[2:]
    assert len(anatomy(model).blocks) == 2
