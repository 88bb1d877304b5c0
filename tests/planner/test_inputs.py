"""Batches: each is taken by its model, trains it, and what is in it reaches the tower."""

from __future__ import annotations

import inspect
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import nn

from pytest_memleak.planner.anatomy import towers_of
from pytest_memleak.planner.inputs import batch, kinds
from tests.planner.small_models import VOCABULARY, build, with_adapters

TEXT = ("text",)
IMAGE = ("text", "image")
AUDIO = ("text", "audio")
VIDEO = ("text", "image", "video")
TEXT_ALONE = ("qwen2", "qwen3", "llama", "gpt2", "gemma3_text", "qwen3_moe", "mixtral", "gpt_oss")
OMNI = "qwen2_5_omni"
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TEXT_ALONE, TEXT),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), VIDEO),
    **dict.fromkeys(("idefics3", "smolvlm", "gemma3", "llava"), IMAGE),
    **dict.fromkeys(("qwen2_audio", "voxtral", "granite_speech"), AUDIO),
    OMNI: ("text", "image", "video", "audio"),
}
ANY_SIZE = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", OMNI}
TOKENS = 320
SMALL = 112
"""Pixels: four by four placeholders with patches of 14, and of 16 rounded."""
NAMED = {
    **{key: {0, 1, 2, 500} for key in KINDS},
    **{key: {0, 1, 2} for key in TEXT_ALONE},
    **{key: {0, 1, 2, *range(500, 504)} for key in ANY_SIZE},
    "gpt2": {1, 2},
    "gemma3": {0, 1, 2, 500, 501, 502},
    OMNI: {0, 1, 2, *range(500, 507)},
}
"""The ids in the configs of these models."""
MARKS = {"gemma3": {501, 502}, OMNI: {502, 503, 505, 506}, **{key: {502, 503} for key in ANY_SIZE - {OMNI}}}
"""Those that are text: where an image starts and ends."""


EACH = [(family, kind) for family, takes in KINDS.items() for kind in takes]


def small_batch(model: nn.Module, family: str, kind: str, **more: Any) -> dict[str, torch.Tensor]:
    pixels = SMALL if family in ANY_SIZE and kind in ("image", "video") else None
    return batch(model, kind, tokens=TOKENS, pixels=pixels, **more)


@pytest.mark.parametrize("family", KINDS)
def test_the_kinds_of_a_family(family: str) -> None:
    assert kinds(build(family)) == KINDS[family]


@pytest.mark.parametrize(("family", "kind"), EACH)
def test_a_model_is_trained_with_its_batch(family: str, kind: str) -> None:
    model = build(family)
    made = small_batch(model, family, kind, rows=2)
    calls: list[str] = []
    modality = "image" if kind == "video" else kind
    for tower in towers_of(model):
        tower.module.register_forward_hook(lambda *_, modality=tower.modality: calls.append(modality))
    loss = model(**made).loss
    loss.backward()
    assert loss.isfinite()
    # As without an idea of what comes next: a loss of one that learns from placeholders would be another.
    assert 0.8 < loss.item() / torch.tensor(VOCABULARY).log().item() < 1.2
    assert set(calls) == ({modality} - {"text"})
    for tower in towers_of(model):
        gradients = [one.grad for one in tower.module.parameters() if one.grad is not None]
        reached = any(bool(gradient.any()) for gradient in gradients)
        assert reached is (tower.modality == modality)


@pytest.mark.parametrize(("family", "kind"), EACH)
def test_ids_are_text_or_placeholders(family: str, kind: str) -> None:
    model = build(family)
    made = small_batch(model, family, kind, rows=2)
    ids, labels = made["input_ids"], made["labels"]
    assert ids.shape == labels.shape == made["attention_mask"].shape == (2, TOKENS)
    assert made["attention_mask"].all()
    learnt = labels != -100
    assert torch.equal(ids[learnt], labels[learnt])
    text = set(ids[learnt].tolist())
    marks = MARKS.get(family, set()) if kind != "text" else set()
    assert not (NAMED[family] - marks) & text
    assert max(text) < VOCABULARY
    assert len(text) > 30
    placeholder = {"text": set(), "image": {500}, "video": {501}, "audio": {504 if family == OMNI else 500}}[kind]
    assert set(ids[~learnt].tolist()) == placeholder


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "gemma3", "voxtral"])
def test_values_are_the_same_every_time_and_leave_torchs_alone(family: str) -> None:
    model = build(family)
    state = torch.random.get_rng_state()
    for kind in kinds(model):
        first, second = (small_batch(model, family, kind) for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_text_is_of_tokens_that_there_are_and_that_nothing_names() -> None:
    model = build("llama")
    model.config.vocab_size = VOCABULARY * 2  # as where a checkpoint's embedding was cut
    model.config.eos_token_id = list(range(2, 500))
    assert set(batch(model)["input_ids"].flatten().tolist()) == set(range(500, VOCABULARY))


def test_rows_are_not_the_same() -> None:
    made = batch(build("gemma3"), "image", rows=2, tokens=64)
    assert not torch.equal(made["input_ids"][0], made["input_ids"][1])
    assert not torch.equal(made["pixel_values"][0], made["pixel_values"][1])


@pytest.mark.parametrize(("family", "kind"), [("gemma3", "image"), ("qwen3_vl", "video"), ("voxtral", "audio")])
def test_pixels_and_sounds_are_in_the_models_precision_and_where_they_are_wanted(family: str, kind: str) -> None:
    model = build(family).to(torch.bfloat16)
    made = small_batch(model, family, kind, device="meta")
    assert {tensor.device.type for tensor in made.values()} == {"meta"}
    assert {tensor.dtype for tensor in made.values() if tensor.is_floating_point()} == {torch.bfloat16}


def test_a_model_without_memory_can_be_asked() -> None:
    """The batch is real: only the model is not there."""
    made = batch(build("qwen3_vl").to("meta"), "image", tokens=64, pixels=SMALL)
    assert {tensor.device.type for tensor in made.values()} == {"cpu"}


@pytest.mark.parametrize("family", ["gpt2", "idefics3", "qwen3_vl"])
def test_adapters_change_nothing(family: str) -> None:
    kind = "text" if family == "gpt2" else "image"
    plain = small_batch(build(family), family, kind)
    model = with_adapters(build(family))
    made = small_batch(model, family, kind)
    assert all(torch.equal(made[name], plain[name]) for name in plain)
    model(**made).loss.backward()
    assert any(one.grad is not None and one.grad.any() for name, one in model.named_parameters() if "lora_B" in name)


def groups(made: dict[str, torch.Tensor], placeholder: int) -> list[int]:
    """How long the runs of placeholders in the first row are."""
    row = (made["input_ids"][0] == placeholder).tolist()
    return [len(list(group)) for is_placeholder, group in groupby(row) if is_placeholder]


def test_what_a_model_is_told_of_its_tokens() -> None:
    """What its mask and its positions go by: left out, they would be those of text."""
    gemma = batch(build("gemma3"), "image", tokens=64)
    assert torch.equal(gemma["token_type_ids"], (gemma["input_ids"] == 500).long())
    assert "token_type_ids" not in batch(build("gpt2")), "which would be embedded"


def test_what_a_qwen_is_told_of_its_tokens() -> None:
    model = build("qwen2_5_vl")
    if "mm_token_type_ids" not in inspect.signature(type(model).forward).parameters:
        pytest.skip("releases before 5 find out by themselves")
    made = batch(model, "video", tokens=TOKENS, pixels=SMALL)
    assert torch.equal(made["mm_token_type_ids"], 2 * (made["input_ids"] == 501).long())
    assert not batch(model)["mm_token_type_ids"].any()


@pytest.mark.parametrize(("family", "runs"), [("qwen2_5_vl", [64]), ("qwen3_vl", [16] * 4), (OMNI, [64])])
def test_a_videos_frames_stand_as_the_models_positions_want_them(family: str, runs: list[int]) -> None:
    """Eight frames, two in each step, four by four placeholders a step."""
    made = small_batch(build(family), family, "video")
    assert groups(made, 501) == runs
    assert made["video_grid_thw"].tolist() == [[4, 8, 8]]
    assert made["pixel_values_videos"].shape[0] == 4 * 8 * 8


def test_starts_and_ends_stand_around_each_piece() -> None:
    ids = batch(build("qwen3_vl"), "video", tokens=TOKENS, pixels=SMALL)["input_ids"][0].tolist()
    starts = [number for number, one in enumerate(ids) if one == 502]
    assert len(starts) == 4
    assert all(ids[start + 1 : start + 18] == [501] * 16 + [503] for start in starts)
    ids = batch(build("gemma3"), "image", tokens=64)["input_ids"][0].tolist()
    assert ids[1:19] == [501] + [500] * 16 + [502]
    ids = batch(build(OMNI), "audio", tokens=64)["input_ids"][0].tolist()
    assert ids[1:23] == [505] + [504] * 20 + [506]


def test_masks_of_sounds() -> None:
    """Of frames, or of what they come to."""
    granite = batch(build("granite_speech"), "audio", rows=2, tokens=TOKENS)
    assert granite["input_features_mask"].shape == (2, 300)
    assert granite["input_features_mask"].all()
    qwen = batch(build("qwen2_audio"), "audio", rows=2, tokens=64)
    assert qwen["feature_attention_mask"].shape == (2, 80)
    assert qwen["feature_attention_mask"].all()


@pytest.mark.parametrize(
    ("family", "asked", "side"), [("qwen2_5_vl", None, 64), ("qwen3_vl", None, 56), ("qwen2_5_vl", 100, 8)]
)
def test_a_side_is_rounded_to_what_is_merged(family: str, asked: int | None, side: int) -> None:
    """896 by default: 64 patches of 14, or 56 of 16."""
    made = batch(build(family), "image", tokens=1100, pixels=asked)
    assert made["image_grid_thw"].tolist() == [[1, side, side]]
    assert groups(made, 500) == [side * side // 4]


def test_tiles() -> None:
    model = build("idefics3")
    one, many = batch(model, "image", tokens=TOKENS), batch(model, "image", tokens=TOKENS, pixels=129)
    assert one["pixel_values"].shape == (1, 1, 3, 128, 128)
    assert groups(one, 500) == [16]
    assert many["pixel_values"].shape == (1, 5, 3, 128, 128), "two by two, and one of all"
    assert groups(many, 500) == [16] * 5
    model(**many).loss.backward()
