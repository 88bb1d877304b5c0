"""The same of modules that no library knows, and blocks that are given by name."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.anatomy import anatomy, towers_of
from tests.planner.small_models import Plain, build, plain_block, plain_blocks


def blocks(model: nn.Module, names: list[str] | None = None) -> list[str]:
    return [block.name for block in anatomy(model, names).blocks]


def towers(model: nn.Module) -> list[tuple[str, str, str]]:
    return [(tower.name, tower.modality, tower.part) for tower in towers_of(model)]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *(("vision", "image"), ("visual", "image"), ("image_encoder", "image"), ("vision_tower", "image")),
        *(("audio_tower", "audio"), ("speech_model", "audio"), ("acoustic_encoder", "audio"), ("video_net", "video")),
    ],
)
def test_a_tower_is_not_the_decoder_however_large_it_is(name: str, modality: str) -> None:
    model = Plain(**{name: Plain(layers=plain_blocks(9, width=64))}, body=Plain(layers=plain_blocks(3)))
    assert blocks(model) == ["body.layers.0", "body.layers.1", "body.layers.2"]
    assert towers(model) == [(name, modality, "tower")]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *(("projector", "image"), ("connector", "image"), ("merger", "image"), ("aligner", "image")),
        *(("multi_modal_projector", "image"), ("embed_vision", "image"), ("embed_audio", "audio")),
        *(("language_projection", "image"), ("image_to_text_projection", "image"), ("audio_projector", "audio")),
    ],
)
def test_a_projector(name: str, modality: str) -> None:
    model = Plain(vision=plain_block(), **{name: plain_block()}, layers=plain_blocks(2))
    assert towers(model) == [("vision", "image", "tower"), (name, modality, "projector")]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Plain(vision=nn.Identity(), audio=nn.Sequential()), "an Identity has no weights"),
        (lambda: Plain(image_pool=nn.AvgPool2d(2)), "nor has a pooling layer"),
        (lambda: Plain(connector=plain_block()), "a projector of nothing"),
        (lambda: Plain(vision_language_model=Plain(body=plain_block())), "the whole"),
        (lambda: Plain(image_head=nn.Linear(8, 8), audio_decoder=plain_block()), "what comes behind"),
        (lambda: Plain(supervision=plain_block(), revisual=plain_block()), "words with these in them"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_tower(make: Callable[[], nn.Module], why: str) -> None:
    assert towers(make()) == []


def test_a_tower_in_a_tower_and_a_projector_in_one_are_part_of_it() -> None:
    model = Plain(vision=Plain(image_stem=plain_block(), merger=plain_block()), layers=plain_blocks(2))
    assert towers(model) == [("vision", "image", "tower")]


def test_what_is_in_a_block_is_the_blocks_own() -> None:
    model = Plain(layers=nn.ModuleList([Plain(visual_expert=plain_block(), mlp=plain_block()) for _ in range(3)]))
    assert towers(model) == []
    assert blocks(model) == ["layers.0", "layers.1", "layers.2"]


def test_a_tower_whose_weights_are_packed_into_buffers() -> None:
    packed = nn.Module()
    packed.register_buffer("qweight", nn.Linear(8, 8).weight.data)
    assert towers(Plain(vision=Plain(proj=packed), layers=plain_blocks(2))) == [("vision", "image", "tower")]


def test_experts_of_a_block_are_no_blocks() -> None:
    model = Plain(layers=nn.ModuleList([Plain(experts=plain_blocks(8)) for _ in range(2)]))
    assert blocks(model) == ["layers.0", "layers.1"]


def test_the_heaviest_list_is_meant() -> None:
    assert blocks(Plain(heads=plain_blocks(4, width=2), layers=plain_blocks(2))) == ["layers.0", "layers.1"]


def test_a_list_of_different_things_is_no_decoder_and_may_hold_one() -> None:
    model = Plain(parts=nn.ModuleList([nn.Embedding(64, 8), Plain(layers=plain_blocks(2)), nn.Linear(8, 64)]))
    assert blocks(model) == ["parts.1.layers.0", "parts.1.layers.1"]


def test_blocks_of_more_than_one_class() -> None:
    model = Plain(layers=nn.ModuleList([plain_block(), nn.Linear(8, 8), plain_block()]))
    assert blocks(model) == ["layers.0", "layers.1", "layers.2"]
    first, other, last = anatomy(model).blocks
    assert first.shape == last.shape != other.shape


def test_a_sequential_of_blocks_but_not_one_of_layers() -> None:
    model = Plain(head=nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), body=nn.Sequential(*plain_blocks(2)))
    assert blocks(model) == ["body.0", "body.1"]


def test_a_block_that_is_run_twice_counts_twice() -> None:
    block = plain_block()
    assert blocks(Plain(layers=nn.ModuleList([block, plain_block(), block]))) == ["layers.0", "layers.1", "layers.2"]


def test_a_module_of_ones_own_around_two_models() -> None:
    """The tower comes first, is a transformers model too, and is heavier than what it is beside."""
    eyes = build("gemma3").model.vision_tower
    eyes.head = nn.Linear(1000, 1000)
    pair = Plain(eyes=eyes, llm=build("qwen2"), bridge=plain_block())
    assert blocks(pair) == [f"llm.model.layers.{number}" for number in range(4)]
    assert towers(pair) == [("eyes", "image", "tower")]


def test_a_small_model_beside_a_large_one() -> None:
    """As a draft or a teacher: the large one is trained."""
    small = build("qwen2")
    del small.model.layers[2:]
    assert blocks(Plain(draft=small, llm=build("gpt2"))) == [f"llm.transformer.h.{number}" for number in range(4)]


def test_a_model_inside_makes_a_tower_of_what_is_called_an_embedding() -> None:
    model = Plain(image_embed=Plain(img=build("gemma3").model.vision_tower, bridge=plain_block()), llm=build("llama"))
    assert towers(model) == [("image_embed", "image", "tower")]


def test_no_blocks() -> None:
    with pytest.raises(BadInput, match=r"Plain has no blocks: looked for .*ModuleList.*blocks=\[\"layers.0\"") as error:
        anatomy(Plain(body=plain_block()))
    assert "towers" not in str(error.value)
    with pytest.raises(BadInput, match=r"outside of its towers \(vision, audio\)"):
        anatomy(Plain(vision=Plain(layers=plain_blocks(3)), audio=plain_block()))


def test_no_blocks_in_a_model_with_a_config() -> None:
    model = build("llama")
    model.model.layers = nn.ModuleList()
    with pytest.raises(BadInput, match=r"LlamaForCausalLM has no blocks: .* hidden layers \(4\)"):
        anatomy(model)


def test_blocks_that_are_given() -> None:
    model = Plain(vision=Plain(layers=plain_blocks(3)), first=plain_block(), audio=plain_block())
    assert blocks(model, ["vision.layers", "first"]) == [*(f"vision.layers.{number}" for number in range(3)), "first"]
    found = anatomy(model, ["vision.layers.1"])
    assert [tower.name for tower in found.towers] == ["audio"], "a block is in the other one"
    assert [tower.name for tower in anatomy(model, ["audio"]).towers] == ["vision"]


def test_what_is_in_a_block_that_is_given_is_the_blocks_own() -> None:
    model = Plain(first=Plain(visual_expert=plain_block()), second=Plain(visual_expert=plain_block()))
    assert [tower.name for tower in anatomy(model, ["first"]).towers] == ["second.visual_expert"]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["layers.7"], r"'layers.7' is no module in Plain: names are as in model.named_modules\(\)"),
        ([""], "'' is no module"),
        ([], r"blocks=\[\] names no block"),
        (["layers.0", "layers.0.up"], "'layers.0.up' is in 'layers.0'"),
        (["layers.0.up", "layers.0"], "'layers.0.up' is in 'layers.0'"),
        (["layers.0", "layers"], "a name is given twice"),
    ],
)
def test_blocks_that_cannot_be_given(names: list[str], match: str) -> None:
    with pytest.raises(BadInput, match=match):
        anatomy(Plain(layers=plain_blocks(2)), names)


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(BadInput, match=r"blocks='layers': give a list of names, as \['layers'\]"):
        anatomy(Plain(layers=plain_blocks(2)), "layers")
