"""Towers: the parts of a model that read images, video or audio, and the projectors from there to the decoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pytest_memleak.planner.transformers_model import is_transformers_model

Modality = Literal["image", "video", "audio"]
Part = Literal["tower", "projector"]

_WORDS: dict[str, Modality] = {
    "vision": "image",
    "visual": "image",
    "image": "image",
    "img": "image",
    "video": "video",
    "audio": "audio",
    "speech": "audio",
    "acoustic": "audio",
}
"""In names of modules and of sub-configs."""
_INPUTS: dict[str, Modality] = {
    "pixel_values": "image",
    "pixel_values_videos": "video",
    "input_features": "audio",
    "input_values": "audio",
}
"""What a transformers model may call its main input."""
_PROJECTORS = {"projector", "connector", "merger", "aligner", "resampler", "qformer", "perceiver", "abstractor"}
_PROJECTS = {"embed", "embedder", "embedding", "embeddings", "proj", "projection", "adapter"}
"""Beside a modality, and without a model inside: ``embed_vision``, ``image_to_text_projection``."""
_NO_TOWER = {"text", "language", "llm", "lm", "decoder", "head"}
"""A name that has one of these too is of the whole, or of what comes behind: ``vision_language_model``."""


@dataclass(frozen=True)
class Tower:
    name: str
    module: nn.Module
    modality: Modality
    """Of a tower that reads images and video, ``image``."""
    part: Part


def find_towers(
    model: nn.Module, transformers_model: Any | None, decoder: nn.Module | None, blocks: Collection[nn.Module] = ()
) -> tuple[Tower, ...]:
    """Outermost ones: a projector in a tower is part of it. None is the decoder or a block, or has one inside."""
    core = {*blocks, *(() if decoder is None else (decoder,))}
    found = list(_Search(transformers_model, core, set(blocks)).below("", model))
    modalities = [tower.modality for tower in found if isinstance(tower, Tower)]
    # A projector whose name does not say of what belongs to the first tower; without one, it is something else.
    return tuple(
        tower if isinstance(tower, Tower) else Tower(*tower, modalities[0], "projector")
        for tower in found
        if isinstance(tower, Tower) or modalities
    )


_Unsaid = tuple[str, nn.Module]
"""A projector whose name says no modality."""


@dataclass(frozen=True)
class _Search:
    transformers_model: Any | None
    core: set[nn.Module]
    closed: set[nn.Module]

    def below(self, path: str, module: nn.Module) -> Iterator[Tower | _Unsaid]:
        for leaf, child in module.named_children():
            if child in self.closed or not _has_weights(child):
                continue
            name = f"{path}.{leaf}" if path else leaf
            if not self.core.isdisjoint(child.modules()):
                yield from self.below(name, child)
            elif not leaf.isdigit():  # one of many: what stands in a block is its own, whatever it is called
                yield from self._what_is(name, leaf, child)

    def _what_is(self, name: str, leaf: str, module: nn.Module) -> Iterator[Tower | _Unsaid]:
        words = _words(leaf)
        modality = _by_name(words) or _by_itself(module, self.transformers_model)
        projects = bool(words & _PROJECTORS) or {"language", "projection"} <= words
        if modality is not None:
            projects |= bool(words & _PROJECTS) and not any(map(is_transformers_model, module.modules()))
            yield Tower(name, module, modality, "projector" if projects else "tower")
        elif projects:
            yield name, module
        else:
            yield from self.below(name, module)


def _has_weights(module: nn.Module) -> bool:
    """A tower is what has weights. An Identity in its place has none, and neither has a pooling or a reshaping layer:
    what that takes depends on the input alone, and a profile with an image shows it anyway. Some quantized layers keep
    their weights as buffers, which are matrices; tables of positions mostly are not."""
    if next(module.parameters(), None) is not None:
        return True
    return any(buffer.dim() > 1 for buffer in module.buffers())


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def _by_name(words: set[str]) -> Modality | None:
    if words & _NO_TOWER and not words & (_PROJECTORS | _PROJECTS):
        return None
    return next((modality for word, modality in _WORDS.items() if word in words), None)


def _by_itself(module: nn.Module, transformers_model: Any | None) -> Modality | None:
    """What a part of a transformers model says it reads (Whisper calls its tower ``encoder``)."""
    by_input = _INPUTS.get(str(getattr(module, "main_input_name", "")))
    if by_input is not None or transformers_model is None:
        return by_input
    return _by_config(module, transformers_model)


def _by_config(module: nn.Module, transformers_model: Any) -> Modality | None:
    """What the type of a part's own config says (``granite_speech_encoder``); that of the whole says nothing of it."""
    own = getattr(module, "config", None)
    if type(own) is type(transformers_model.config):
        return None
    return _by_name(_words(str(getattr(own, "model_type", ""))))
