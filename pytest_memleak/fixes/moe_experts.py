"""The experts of a mixture, which a load in 4 bits leaves at full precision: nearly all of the model.

transformers 5 has the experts of a layer in one 3D parameter. Loading in 4 bits with bitsandbytes quantizes the weights
of linear layers, and nothing else: of Qwen3-MoE, Mixtral or GPT-OSS 96 % of the bytes that are left are experts in 16
bits, which `prepare_model_for_kbit_training` then makes 32. No release up to 5.24 does otherwise.

The fix quantizes experts as they are loaded, each by itself into the packed tensor of all: what a load needs beyond
what stays is what it has in hand, and the result is bit by bit that of bitsandbytes' own `replace_parameter_4bit` after
the load. `quantize_experts` does it to a model that was loaded before. What is saved so is loaded so, under the fix.

Checked with transformers 5.0.0, 5.3.0, 5.4.0, 5.23.0 and 5.24.0, bitsandbytes 0.48.2, 0.49.2 and 0.50.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pytest_memleak.fixes._loader import loader_of_5
from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.fixes._moe_outcome import Outcome


def quantize_experts(model: Any, config: Any = None) -> Outcome:
    """Puts the experts of a model that is loaded into 4 bits, in place; says what it did.

    `config`: the `BitsAndBytesConfig` to go by; that of the load, if none is given. All of it is done or, where one of
    the experts cannot be, nothing (`BadInput`).
    """
    from pytest_memleak.fixes import _moe_model

    return _moe_model.quantize_experts(model, config)


def _by_expert() -> Iterator[AbstractContextManager[object]]:
    """Loads in 4 bits quantize the experts as they come, and LoRA finds and trains what is packed."""
    from pytest_memleak.fixes import _moe_patches, _moe_peft

    yield from _moe_patches.patches()
    yield _moe_peft.patches()


def _at_full_precision() -> list[Patch]:
    """The bug, which each release that has such a loader has by itself."""
    loader_of_5("moe_experts")
    return []


FIX = Fix(
    "moe_experts",
    mends="a load in 4 bits leaves the experts of a mixture, nearly all of the model, at full precision",
    links=(
        "https://github.com/axolotl-ai-cloud/axolotl/pull/3395",
        "https://github.com/axolotl-ai-cloud/axolotl/pull/3439",
    ),
    affected={"transformers": ">=5.0"},
    patches=_by_expert,
    bugs={"skipped": _at_full_precision},
)

__all__ = ["FIX", "quantize_experts"]
