"""Images and videos, as each kind of model takes them. Which kind it is shows in what its forward takes and its config.

Models count their placeholders against the features that came of an image, and refuse what does not fit: a layout that
were taken for another would be an error, and not another number.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

from pytest_memleak.planner.inputs.request import Media, Request, marks, optional

IMAGE_SIDE = 896
"""Pixels, where a model takes images of any size: what a page or a screen is mostly scaled to."""
VIDEO_SIDE = 448
VIDEO_FRAMES = 8
"""Four seconds at two frames a second, to which processors thin videos out."""


def image(request: Request) -> Media:
    config = request.config
    if "image_grid_thw" in request.arguments:
        return _grid(request, IMAGE_SIDE, steps=1)
    side = _fixed_side(request)
    patches = (side // int(request.first(request.of_tower, "patch_size"))) ** 2
    if "pixel_attention_mask" in request.arguments and optional(config, "scale_factor"):
        return _tiles(request, side, patches // int(config.scale_factor) ** 2)
    if request.pixels not in (None, side):
        raise request.refused(f"pixels={request.pixels}, and every image has image_size={side} by its config")
    if optional(config, "mm_tokens_per_image"):  # Gemma 3: pooled
        count = int(config.mm_tokens_per_image)
    elif optional(config, "image_seq_length") and not optional(config, "image_grid_pinpoints"):  # LLaVA, InternVL
        count = int(config.image_seq_length)
        come_to = int(patches * float(optional(config, "downsample_ratio") or 1) ** 2)
        if count not in (come_to, come_to + 1):  # the class token may be left in
            raise request.refused(f"image_seq_length={count}, and {side} pixels come to {come_to} tokens")
    else:
        raise request.refused("its images are laid out in a way that is not known here")
    pixels = request.noise(request.rows, _channels(request), side, side)
    return Media({"pixel_values": pixels}, request.placeholder(), (count,), marks(config, "vision", "image"))


def _tiles(request: Request, side: int, count: int) -> Media:
    """Idefics 3's: what is larger than a tile is cut up, and one more tile shows all of it. Without `pixels`, one."""
    along = -(-(request.pixels or side) // side)
    tiles = 1 if along == 1 else along**2 + 1
    shape = (request.rows, tiles)
    tensors = {
        "pixel_values": request.noise(*shape, _channels(request), side, side),
        "pixel_attention_mask": torch.ones(*shape, side, side, dtype=torch.long, device="cpu"),
    }
    return Media(tensors, request.placeholder(), (count,) * tiles, ())


def video(request: Request) -> Media:
    if "video_grid_thw" not in request.arguments:
        raise request.refused("its videos are laid out in a way that is not known here")
    step = int(request.first(request.of_tower, "temporal_patch_size"))
    return _grid(request, VIDEO_SIDE, steps=max(1, VIDEO_FRAMES // step))


def _grid(request: Request, default: int, steps: int) -> Media:
    """Qwen-VL's: all patches of all images in one matrix, and how many there are along each image's sides."""
    tower = request.of_tower
    patch, merge, depth = (
        int(request.first(tower, name)) for name in ("patch_size", "spatial_merge_size", "temporal_patch_size")
    )
    unit = patch * merge
    side = max(1, round((request.pixels or default) / unit)) * merge
    values = request.noise(request.rows * steps * side**2, _channels(request) * depth * patch**2)
    grid = torch.tensor([[steps, side, side]] * request.rows, device="cpu")
    around = marks(request.config, "vision", request.kind)
    per_step = (side // merge) ** 2
    if request.kind == "image":
        tensors = {"pixel_values": values, "image_grid_thw": grid}
        return Media(tensors, request.placeholder(), (per_step,), around)
    tensors = {"pixel_values_videos": values, "video_grid_thw": grid}
    for name in {"second_per_grid_ts", "video_second_per_grid"} & request.arguments:
        tensors[name] = torch.ones(request.rows, device="cpu")
    runs = (per_step,) * steps if _frames_stand_apart(request, merge, around) else (per_step * steps,)
    return Media(tensors, request.placeholder(), runs, around)


def _frames_stand_apart(request: Request, merge: int, around: tuple[int, ...]) -> bool:
    """Qwen3-VL has text between a video's frames, the time of each; Qwen2.5-VL has none. Nothing in their configs or
    signatures tells, but each has a rule for positions that can do with its own way alone."""
    rule = next((one.get_rope_index for one in request.model.modules() if hasattr(one, "get_rope_index")), None)
    if rule is None:
        raise request.refused("it has no get_rope_index to tell how its frames stand in the text")
    works = [apart for apart in (False, True) if _can_place(rule, request.placeholder(), merge, around, apart)]
    if len(works) != 1:
        raise request.refused("its get_rope_index does not tell how its frames stand in the text")
    return works[0]


def _can_place(rule: Any, placeholder: int, merge: int, around: tuple[int, ...], apart: bool) -> bool:
    """Two frames of two by two tokens: each has two heights. What a rule takes for text goes up by one a token."""
    text = next(one for one in range(4) if one not in {placeholder, *around})
    frame = (placeholder,) * 4
    parts = (frame, frame) if apart else (frame + frame,)
    row = [one for part in parts for one in (text, *around[:1], *part, *around[1:])] + [text]
    ids = torch.tensor([row], device="cpu")
    offered: dict[str, Any] = {
        "input_ids": ids,
        "mm_token_type_ids": 2 * (ids == placeholder).int(),
        "video_grid_thw": torch.tensor([[2, 2 * merge, 2 * merge]], device="cpu"),
        "second_per_grid_ts": torch.ones(1, device="cpu"),
        "second_per_grids": torch.ones(1, device="cpu"),
        "attention_mask": torch.ones_like(ids),
    }
    takes = inspect.signature(rule).parameters
    try:
        positions, _ = rule(**{name: value for name, value in offered.items() if name in takes})
    except (IndexError, RuntimeError, StopIteration, ValueError):  # what they raise where counts do not fit
        return False
    heights = positions[1][ids == placeholder].tolist()
    return len(set(heights[:4])) == len(set(heights[4:])) == 2


def _fixed_side(request: Request) -> int:
    size = request.first(request.of_tower, "image_size")
    sides = set(size.values()) if isinstance(size, dict) else set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise request.refused(f"its images are not square: image_size={size!r}")
    return int(sides.pop())


def _channels(request: Request) -> int:
    return int(request.first(request.of_tower, "in_channels", "in_chans", "num_channels"))
