"""A batch of a kind for a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.anatomy import towers_of
from pytest_memleak.planner.inputs.images import image, video
from pytest_memleak.planner.inputs.request import INSTEAD, Media, Request
from pytest_memleak.planner.inputs.sounds import audio
from pytest_memleak.planner.inputs.text import rows_of_tokens
from pytest_memleak.planner.transformers_model import forward_arguments, transformers_model

Kind = Literal["text", "image", "video", "audio"]

_MEDIA: dict[str, Callable[[Request], Media]] = {"image": image, "video": video, "audio": audio}

_UNDERSTOOD = {
    *("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes", "image_hidden_states"),
    *("pixel_values_videos", "video_grid_thw", "video_second_per_grid", "second_per_grid_ts"),
    *("input_features", "feature_attention_mask", "input_features_mask", "audio_feature_lengths"),
}
_OF_MEDIA = (
    "pixel_",
    "image_",
    "video_",
    "spatial_",
    "input_features",
    "feature_",
    "audio_",
    "num_frames",
    "num_delay",
)
"""How arguments begin that say more of an image, a video or a sound: with one that is not understood, it is of a family
whose batches look different."""


def kinds(model: nn.Module) -> tuple[str, ...]:
    """Of batches that the model can be trained with. Not all of them can be made here."""
    has = {tower.modality for tower in towers_of(model)}
    known = transformers_model(model)
    if known is not None and has & {"image", "video"} and "pixel_values_videos" in forward_arguments(known):
        has.add("video")  # the tower for images reads videos too
    return ("text", *(kind for kind in _MEDIA if kind in has))


def batch(
    model: nn.Module,
    kind: str = "text",
    rows: int = 1,
    tokens: int = 512,
    device: torch.device | str = "cpu",
    *,
    pixels: int | None = None,
) -> dict[str, torch.Tensor]:
    """One that is like real ones in all that its memory depends on; values are random, and the same every time.

    Each row has as many tokens, the placeholders of its one image, video or sound among them. An image is as large as
    the config says. Where that leaves it open its side is `pixels`, or 896, and a video's 448; where images are cut
    into tiles of a size it is `pixels`, or that of one tile.
    """
    known = _trainable(model, kind)
    if kind not in (takes := kinds(model)):
        raise BadInput(f"kind={kind!r}: {type(known).__name__} takes {', '.join(takes)}")
    for name, value in (("rows", rows), ("tokens", tokens), ("pixels", pixels)):
        if value is not None and value < 1:
            raise BadInput(f"{name}={value!r}: must be one at least")
    request = Request(known, kind, rows, pixels, torch.Generator("cpu").manual_seed(0))
    media = _media(request)
    made = {**rows_of_tokens(request, tokens, media, mixed=len(takes) > 1), **(media.tensors if media else {})}
    return {name: tensor.to(device) for name, tensor in made.items()}


def _media(request: Request) -> Media | None:
    if request.kind == "text":
        return None
    strange = sorted(one for one in request.arguments - _UNDERSTOOD if one.startswith(_OF_MEDIA))
    if strange:
        raise request.refused(f"what its forward takes as {', '.join(strange)} is not known here")
    return _MEDIA[request.kind](request)


def _trainable(model: nn.Module, kind: str) -> Any:
    known = transformers_model(model)
    name = type(model if known is None else known).__name__
    if known is None:
        why = "it is no transformers model, and only these say what they take"
    elif "labels" not in forward_arguments(known):
        why = "its forward takes no labels, so that it has no loss"
    elif getattr(known.config, "is_encoder_decoder", False):
        why = "it is an encoder and a decoder, whose batches are not made here"
    else:
        return known
    raise BadInput(f"no {kind} batch can be made for {name}: {why}; {INSTEAD}")
