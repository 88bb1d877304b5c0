"""What a load asks of bitsandbytes, and whether a model's experts can be had so: asked before any is touched."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.upstream.experts import ExpertParameter, expert_parameters

OLDEST = "0.48"
"""The first bitsandbytes that quantizes parameters which are no layer's weight."""
TYPES = ("nf4", "fp4")
_SKIP = "name what has to stay as it is in llm_int8_skip_modules of the BitsAndBytesConfig"


@dataclass(frozen=True)
class Settings:
    quant_type: str
    nested: bool
    blocksize: int
    compute_dtype: torch.dtype | None
    skipped: tuple[str, ...]
    """Patterns of names, as transformers reads them."""

    def __str__(self) -> str:
        return f"{self.quant_type}, blocks of {self.blocksize}{', nested' if self.nested else ''}"


def is_four_bit(quantizer: Any) -> bool:
    """Of a load, or of a model that was loaded."""
    return type(quantizer).__name__ == "Bnb4BitHfQuantizer"


def settings_of(config: Any, skipped: Iterable[str] | None = None) -> Settings:
    """What a `BitsAndBytesConfig` asks for; `skipped`: what a load made of its list, which adds to it."""
    quant_type = str(getattr(config, "bnb_4bit_quant_type", None))
    if quant_type not in TYPES:
        raise BadInput(f"bnb_4bit_quant_type={quant_type!r}: bitsandbytes has {' and '.join(TYPES)} in 4 bits")
    asked = skipped if skipped is not None else config.llm_int8_skip_modules
    return Settings(
        quant_type,
        bool(config.bnb_4bit_use_double_quant),
        # No release of transformers lets it be chosen, and bitsandbytes' own default depends on the card's make.
        getattr(config, "bnb_4bit_blocksize", None) or _default_blocksize(),
        config.bnb_4bit_compute_dtype,
        tuple(asked or ()),
    )


def require_bitsandbytes() -> Any:
    """Its module for parameters."""
    try:
        installed = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        raise Unavailable(f"moe_experts needs bitsandbytes {OLDEST} or later, which is not installed here") from None
    if Version(installed) < Version(OLDEST):
        raise Unavailable(
            f"moe_experts needs bitsandbytes {OLDEST} or later: {installed}, which is installed here, quantizes the "
            "weights of layers alone"
        )
    return import_module("bitsandbytes.nn.parametrize")


@functools.cache
def _default_blocksize() -> int:
    functional = import_module("bitsandbytes.functional")
    _, state = functional.quantize_4bit(torch.zeros(4096))
    return int(state.blocksize)


def chosen(model: nn.Module, settings: Settings, offloaded: Iterable[str] = ()) -> list[ExpertParameter]:
    """The experts to quantize: all, but for what the caller wants as it is and what is not on a card.

    Each is one that can be quantized by itself, or a `BadInput` says what to do instead.
    """
    should_convert = import_module("transformers.quantizers.quantizers_utils").should_convert_module
    elsewhere, skipped = set(offloaded), list(settings.skipped)
    found = [
        one
        for one in expert_parameters(model)
        # A pattern may name the module, as it does a layer, or the parameter.
        if one.name not in elsewhere and all(should_convert(name, skipped) for name in (one.path, one.name))
    ]
    _require_untied(model, found)
    for one in found:
        _require_whole_blocks(one, settings.blocksize)
    return found


def _require_untied(model: nn.Module, experts: Iterable[ExpertParameter]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for one in experts:
        same = names[id(one.parameter)]
        with_it = [*same, *tied.keys(), *tied.values()] if one.name in tied or one.name in tied.values() else same
        others = sorted(set(with_it) - {one.name})
        if others:
            raise BadInput(
                f"{one.name} is tied to {', '.join(others[:3])}: quantized by itself it would be a tensor of its own. "
                f"Untie them, or {_SKIP}, such as {one.name!r}"
            )


def _require_whole_blocks(one: ExpertParameter, blocksize: int) -> None:
    rows, columns = one.parameter.shape[1:]
    if rows * columns % blocksize:
        raise BadInput(
            f"an expert of {one.name} has {rows} × {columns} = {rows * columns} values, which blocks of {blocksize} "
            f"do not divide: a block would reach into the next expert. Quantize another size, or {_SKIP}, such as "
            f"{one.name!r}"
        )
