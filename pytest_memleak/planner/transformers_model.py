"""The transformers model in a model: what it says of itself. Nothing here imports transformers."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import nn

_TEXT = "input_ids"


def is_transformers_model(module: nn.Module) -> bool:
    """PEFT's wrappers look like the model they wrap, attribute by attribute: only the class tells."""
    library = sys.modules.get("transformers.modeling_utils")
    return library is not None and isinstance(module, library.PreTrainedModel)


def transformers_model(model: nn.Module) -> Any | None:
    """The model itself, or the one that PEFT, torch or the user's own module wraps; of several, the one of text."""
    outermost: list[Any] = []
    below: set[nn.Module] = set()
    for module in model.modules():
        if module not in below and is_transformers_model(module):
            outermost.append(module)
            below.update(module.modules())
    of_text = [module for module in outermost if getattr(module, "main_input_name", _TEXT) == _TEXT]
    return max(of_text or outermost, key=count_weights, default=None)


def count_weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def text_config(model: Any) -> Any:
    """The part of the config that is about the decoder: of a model of text alone, the config."""
    config = model.config
    if not hasattr(config, "get_text_config"):
        return config
    return config.get_text_config(decoder=True)


def decoder(model: nn.Module) -> nn.Module:
    """What the model calls its decoder; the model itself where it does not say."""
    ask = getattr(model, "get_decoder", None)
    found = ask() if callable(ask) else None
    return found if isinstance(found, nn.Module) else model


def forward_arguments(model: Any) -> frozenset[str]:
    """Of the class: hooks replace the forward of an instance."""
    return frozenset(inspect.signature(type(model).forward).parameters)


def float_dtype(model: nn.Module) -> torch.dtype:
    """In which it computes. Quantized weights are integers."""
    return next((one.dtype for one in model.parameters() if one.is_floating_point()), torch.float32)
