"""What cannot be made is said, and never guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.anatomy import towers_of
from pytest_memleak.planner.inputs import batch, kinds
from tests.planner.small_models import Plain, build, plain_block, plain_blocks


@pytest.mark.parametrize(
    ("family", "kind", "needed", "options"),
    [
        ("qwen2_5_vl", "image", 1 + 1 + 16 + 1 + 1, {"pixels": 112}),
        ("qwen3_vl", "video", 4 * (1 + 1 + 16 + 1) + 1, {"pixels": 128}),
        ("gemma3", "image", 1 + 1 + 16 + 1 + 1, {}),
        ("idefics3", "image", 1 + 16 + 1, {}),
        ("llava", "image", 1 + 64 + 1, {}),
        ("qwen2_audio", "audio", 1 + 20 + 1, {}),
        ("voxtral", "audio", 1 + 10 + 1, {}),
        ("granite_speech", "audio", 1 + 300 + 1, {}),
    ],
)
def test_as_many_tokens_as_are_needed_will_do(family: str, kind: str, needed: int, options: dict[str, Any]) -> None:
    model = build(family)
    assert model(**batch(model, kind, tokens=needed, **options)).loss.isfinite()
    with pytest.raises(BadInput, match=rf"tokens={needed - 1} are too few for one {kind} .* tokens={needed} at least"):
        batch(model, kind, tokens=needed - 1, **options)


def test_too_few_tokens_for_the_default_side() -> None:
    with pytest.raises(BadInput, match=r"1024 placeholders .* tokens=1028 at least, or give a smaller side as pixels"):
        batch(build("qwen2_5_vl"), "image")


@pytest.mark.parametrize(("family", "kind"), [("llama", "image"), ("gemma3", "audio"), ("idefics3", "video")])
def test_a_kind_that_the_model_does_not_take(family: str, kind: str) -> None:
    model = build(family)
    with pytest.raises(BadInput, match=rf"kind='{kind}': {type(model).__name__} takes text"):
        batch(model, kind)


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(BadInput, match="kind='smell'"):
        batch(build("llama"), "smell")


@pytest.mark.parametrize("options", [{"rows": 0}, {"tokens": 0}, {"pixels": -1}])
def test_sizes_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="must be one at least"):
        batch(build("llama"), **options)


def test_a_side_that_the_config_fixes() -> None:
    with pytest.raises(BadInput, match=r"Gemma3.*: pixels=448, and every image has image_size=112"):
        batch(build("gemma3"), "image", pixels=448)
    assert batch(build("gemma3"), "image", tokens=64, pixels=112)["pixel_values"].shape[-1] == 112


def test_a_model_that_is_not_of_transformers() -> None:
    model = Plain(image_encoder=plain_block(), layers=plain_blocks(2))
    assert kinds(model) == ("text", "image")
    with pytest.raises(BadInput, match=r"no text batch .* Plain: it is no transformers model.*of your own"):
        batch(model)


def test_a_model_without_a_loss() -> None:
    with pytest.raises(BadInput, match="Qwen2Model: its forward takes no labels"):
        batch(build("qwen2").model)


@pytest.mark.parametrize(("family", "name"), [("t5", "T5"), ("whisper", "Whisper")])
def test_a_model_whose_encoder_takes_a_batch_of_its_own(family: str, name: str) -> None:
    with pytest.raises(BadInput, match=f"{name}ForConditionalGeneration: it is an encoder and a decoder"):
        batch(build(family))


def test_a_family_whose_images_are_laid_out_otherwise() -> None:
    model = build("gemma3")
    takes_more = type("TakesMore", (type(model),), {"forward": _takes_shapes})
    model.__class__ = takes_more
    with pytest.raises(BadInput, match=r"no image batch .* TakesMore: what its forward takes as spatial_shapes is not"):
        batch(model, "image")
    assert batch(model, "text")["input_ids"].shape == (1, 512)


def _takes_shapes(
    self: Any, input_ids: torch.Tensor, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor, labels: torch.Tensor
) -> None: ...


@pytest.mark.parametrize(
    ("family", "kind", "missing", "match"),
    [
        ("qwen3_vl", "image", "temporal_patch_size", "Qwen3VLVisionConfig has no temporal_patch_size"),
        ("gemma3", "image", "image_size", "SiglipVisionConfig has no image_size"),
        ("voxtral", "audio", "max_source_positions", "VoxtralEncoderConfig has no max_source_positions"),
    ],
)
def test_a_config_that_does_not_say(family: str, kind: str, missing: str, match: str) -> None:
    model = build(family)
    tower = model.config.audio_config if kind == "audio" else model.config.vision_config
    object.__setattr__(tower, missing, None)  # configs check what they are given
    with pytest.raises(BadInput, match=match):
        batch(model, kind)


def test_a_config_whose_sizes_do_not_agree() -> None:
    model = build("llava")
    model.config.image_seq_length = 576
    with pytest.raises(BadInput, match="image_seq_length=576, and 112 pixels come to 64 tokens"):
        batch(model, "image")
    model = build("voxtral")
    object.__setattr__(model.config.audio_config, "intermediate_size", 100)
    with pytest.raises(BadInput, match="its 40 positions of 32 do not come to rows of 100"):
        batch(model, "audio")


def test_a_tower_that_does_not_say_what_a_length_comes_to() -> None:
    model = build("qwen2_audio")
    tower: Any = towers_of(model)[0].module
    tower._get_feat_extract_output_lengths = None
    with pytest.raises(BadInput, match="Qwen2AudioEncoder does not say how many features"):
        batch(model, "audio")


def test_an_image_that_is_not_square() -> None:
    model = build("gemma3")
    model.config.vision_config.image_size = [112, 224]
    with pytest.raises(BadInput, match=r"not square: image_size=\[112, 224\]"):
        batch(model, "image")


def test_positions_that_fit_neither_way() -> None:
    model = build("qwen3_vl")
    model.model.get_rope_index = lambda input_ids: (input_ids.cumsum(-1).expand(3, 1, -1), None)
    with pytest.raises(BadInput, match="get_rope_index does not tell how its frames stand"):
        batch(model, "video", pixels=112)
