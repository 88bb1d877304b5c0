"""`quantize_experts`: what the fix `moe_experts` does during a load, done to a model that was loaded before."""

from __future__ import annotations

from typing import Any

import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes._moe_outcome import Outcome
from pytest_memleak.fixes._moe_packing import packed
from pytest_memleak.fixes._moe_reload import keep_together
from pytest_memleak.fixes._moe_settings import Settings, chosen, is_four_bit, require_bitsandbytes, settings_of
from pytest_memleak.upstream.experts import ExpertParameter, expert_parameters


def quantize_experts(model: Any, config: Any = None) -> Outcome:
    require_bitsandbytes()
    settings = _settings(model, config)
    outcome = Outcome(type(model).__name__)
    outcome.settings = settings
    outcome.without_config = not is_four_bit(getattr(model, "hf_quantizer", None))
    experts = chosen(model, settings)
    for one in experts:
        _require_here(one)
    quantized = {one.name for one in experts}
    skipped = [one for one in expert_parameters(model) if one.name not in quantized]
    outcome.leave(skipped, "llm_int8_skip_modules names them")
    if experts:
        keep_together(model, [one.name for one in expert_parameters(model)])
    while experts:
        one = experts.pop(0)  # its tensor goes when it is packed, and must not be held here
        _quantize(one, settings, outcome)
        del one
    outcome.tell()
    return outcome


def _quantize(one: ExpertParameter, settings: Settings, outcome: Outcome) -> None:
    stack = one.parameter.detach()
    done = packed(iter(stack.unbind()), stack.shape, settings)
    outcome.add(one.name, stack.shape, done)
    done.put(one.module, one.leaf)


def _settings(model: Any, config: Any) -> Settings:
    if config is not None:
        if not getattr(config, "load_in_4bit", False):
            raise BadInput(
                f"quantize_experts goes by a BitsAndBytesConfig(load_in_4bit=True), and {type(config).__name__} is of "
                "another kind"
            )
        return settings_of(config)
    quantizer: Any = getattr(model, "hf_quantizer", None)
    if not is_four_bit(quantizer):
        how = f"by {type(quantizer).__name__}" if quantizer is not None else "without quantization"
        raise BadInput(
            f"this {type(model).__name__} was loaded {how}, and says nothing of 4 bits: give a "
            "BitsAndBytesConfig(load_in_4bit=True, …) to go by"
        )
    return settings_of(quantizer.quantization_config, getattr(quantizer, "modules_to_not_convert", None))


def _require_here(one: ExpertParameter) -> None:
    hooked = getattr(getattr(one.module, "_hf_hook", None), "offload", False)
    if one.parameter.is_meta or hooked:
        raise BadInput(
            f"{one.name} is not here: it is on meta, or offloaded by accelerate, which puts it on the card for each "
            "step. Load the model without offloading, with the fix moe_experts in force: in 4 bits it may fit; or name "
            f"it in llm_int8_skip_modules, such as {one.name!r}"
        )
    if one.parameter.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise BadInput(
            f"{one.name} is {str(one.parameter.dtype).removeprefix('torch.')}: bitsandbytes quantizes float16, "
            "bfloat16 and float32"
        )
