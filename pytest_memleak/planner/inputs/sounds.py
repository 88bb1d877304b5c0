"""Sounds, as each kind of model takes them: as many frames of a spectrogram as its tower has positions for."""

from __future__ import annotations

import torch

from pytest_memleak.planner.inputs.request import Media, Request, marks
from pytest_memleak.planner.towers import find_towers
from pytest_memleak.planner.transformers_model import decoder

_GRANITE_FRAMES = 1500
"""Thirty seconds, where a tower takes sounds of any length: as long as Whisper's windows are."""


def audio(request: Request) -> Media:
    takes = request.arguments
    if "input_features" not in takes:
        raise request.refused("its forward takes no input_features")
    if "feature_attention_mask" in takes:
        tensors, count = _masked_window(request)
    elif {"window_size", "downsample_rate"} <= set(request.config.to_dict()):
        tensors, count = _windows_of_queries(request)
    elif "input_features_mask" not in takes:
        tensors, count = _stacked_frames(request)
    else:
        raise request.refused("its sounds are laid out in a way that is not known here")
    return Media(tensors, request.placeholder(), (count,), marks(request.config, "audio"))


def _masked_window(request: Request) -> tuple[dict[str, torch.Tensor], int]:
    """Qwen2-Audio's and Qwen2.5-Omni's: the tower itself says how many features a length comes to."""
    frames, mels = _whisper_frames(request), int(request.first(request.of_tower, "num_mel_bins"))
    towers = find_towers(request.model, request.model, decoder(request.model))
    tower = next(one.module for one in towers if one.modality == "audio" and one.part == "tower")
    count = getattr(tower, "_get_feat_extract_output_lengths", None)
    if count is None:
        raise request.refused(f"its {type(tower).__name__} does not say how many features a length comes to")
    _, features = count(torch.tensor([frames], device="cpu"))
    tensors = {
        "input_features": request.noise(request.rows, mels, frames),
        "feature_attention_mask": torch.ones(request.rows, frames, dtype=torch.long, device="cpu"),
    }
    return tensors, int(features)


def _windows_of_queries(request: Request) -> tuple[dict[str, torch.Tensor], int]:
    """Granite Speech's: each window of frames comes to a few queries, and the mask is one of these."""
    window, rate = int(request.config.window_size), int(request.config.downsample_rate)
    count = -(-_GRANITE_FRAMES // window) * (window // rate)
    tensors = {"input_features": request.noise(request.rows, _GRANITE_FRAMES, int(request.of_tower.input_dim))}
    if "input_features_mask" in request.arguments:
        tensors["input_features_mask"] = torch.ones(request.rows, count, dtype=torch.bool, device="cpu")
    return tensors, count


def _stacked_frames(request: Request) -> tuple[dict[str, torch.Tensor], int]:
    """Voxtral's: as many of the tower's outputs are put side by side as are as wide as its feed-forward layers."""
    tower = request.of_tower
    frames, mels = _whisper_frames(request), int(request.first(tower, "num_mel_bins"))
    width, stacked = int(request.first(tower, "hidden_size")), int(request.first(tower, "intermediate_size"))
    count, rest = divmod(int(tower.max_source_positions) * width, stacked)
    if rest:
        raise request.refused(f"its {tower.max_source_positions} positions of {width} do not come to rows of {stacked}")
    return {"input_features": request.noise(request.rows, mels, frames)}, count


def _whisper_frames(request: Request) -> int:
    """Its second convolution has a stride of two."""
    return 2 * int(request.first(request.of_tower, "max_source_positions"))
