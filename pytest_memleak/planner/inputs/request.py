"""What a batch is asked for, what its images, videos or sounds come to, and how a config is read for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.transformers_model import float_dtype, forward_arguments

INSTEAD = "give a batch of your own, as its processor makes it"


@dataclass(frozen=True)
class Request:
    """One piece (an image, a video, a sound) in each row."""

    model: Any
    """Of transformers, without what wraps it."""
    kind: str
    rows: int
    pixels: int | None
    generator: torch.Generator

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def of_tower(self) -> Any:
        """The tower's config."""
        return self.first(self.config, "audio_config" if self.kind == "audio" else "vision_config", "encoder_config")

    @cached_property
    def arguments(self) -> frozenset[str]:
        return forward_arguments(self.model)

    def noise(self, *shape: int) -> torch.Tensor:
        noise = torch.randn(*shape, generator=self.generator, device="cpu")
        return noise.to(float_dtype(self.model))

    def first(self, config: Any, *names: str) -> Any:
        """Families call the same size by several names."""
        found = optional(config, *names)
        if found is None:
            raise self.refused(f"its {type(config).__name__} has no {' or '.join(names)}")
        return found

    def placeholder(self) -> int:
        return int(self.first(self.config, f"{self.kind}_token_id", f"{self.kind}_token_index"))

    def refused(self, why: str) -> BadInput:
        return BadInput(f"no {self.kind} batch can be made for {type(self.model).__name__}: {why}; {INSTEAD}")


@dataclass(frozen=True)
class Media:
    tensors: Mapping[str, torch.Tensor]
    """Of all rows together."""
    placeholder: int
    """The id that stands in the text wherever there will be features instead."""
    runs: tuple[int, ...]
    """How many of them a row has behind each other: several runs where text comes between the frames of a video."""
    marks: tuple[int, ...]
    """The ids around each run: of its start and of its end, or none."""


def optional(config: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), None)


def marks(config: Any, *whats: str) -> tuple[int, ...]:
    """Of the start and the end of an image or the like, where the config knows them. Some find images by these."""
    for what in whats:
        start = optional(config, f"{what}_start_token_id", f"bo{what[0]}_token_id", f"bo{what[0]}_token_index")
        end = optional(config, f"{what}_end_token_id", f"eo{what[0]}_token_id", f"eo{what[0]}_token_index")
        if isinstance(start, int) and isinstance(end, int):
            return start, end
    return ()
