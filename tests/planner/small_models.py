"""Small models of many families with random weights, built when they are asked for: nothing is made on import."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.planner.families import images, sounds, texts  # each says what it builds
from tests.planner.families.sizes import BUILDERS, LAYERS, VOCABULARY

__all__ = ["LAYERS", "VOCABULARY", "Plain", "build", "images", "plain_block", "plain_blocks", "sounds", "texts"]


def build(family: str) -> Any:
    """On the CPU in single precision, with the same weights every time; ready to be trained."""
    pytest.importorskip("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return BUILDERS[family]().train()
        except ImportError as missing:
            pytest.skip(f"another release of transformers has {family}: {missing}")


def with_adapters(model: Any, targets: list[str] | str = "all-linear") -> Any:
    """As PEFT wraps it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=targets))


class Plain(nn.Module):
    """A module that holds what it is given."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def plain_block(width: int = 8) -> nn.Module:
    return Plain(up=nn.Linear(width, width), down=nn.Linear(width, width))


def plain_blocks(count: int, width: int = 8) -> nn.ModuleList:
    return nn.ModuleList([plain_block(width) for _ in range(count)])
