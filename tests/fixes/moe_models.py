"""Small mixtures, and their loads on the CPU."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GptOssConfig,
    JetMoeConfig,
    Llama4TextConfig,
    MixtralConfig,
    Qwen3MoeConfig,
    core_model_loading,
)

from pytest_memleak.upstream.checkpoints import make_checkpoint

EXPERTS, WIDTH, HIDDEN, LAYERS = 4, 32, 64, 2
_ALIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}


def qwen3_moe(**others: Any) -> Any:
    # The number of experts has had two names.
    own = {"num_experts": EXPERTS, "moe_intermediate_size": WIDTH, "head_dim": 16}
    return Qwen3MoeConfig(**_ALIKE | own | others)


def mixtral(**others: Any) -> Any:
    return MixtralConfig(**_ALIKE | others)


def gpt_oss(**others: Any) -> Any:
    return GptOssConfig(**_ALIKE | {"head_dim": 16} | others)


def jetmoe(**others: Any) -> Any:
    return JetMoeConfig(**_ALIKE | {"kv_channels": 16, "pad_token_id": 0} | others)


def llama4(**others: Any) -> Any:
    own = {"intermediate_size_mlp": WIDTH, "head_dim": 16, "pad_token_id": 0}
    return Llama4TextConfig(**_ALIKE | own | others)


CONFIGS: dict[str, Callable[..., Any]] = {
    "a tensor for each expert": qwen3_moe,
    "renamed on the way": mixtral,
    "one tensor for all": gpt_oss,
    "experts by another name": jetmoe,
}


def saved(folder: Path, config: Any) -> Path:
    return make_checkpoint(config, folder, tokenizer=False)


def tells_of_another_shape() -> bool:
    """Whether a load that quantizes does; until 5.4 at least, what came was taken."""
    return "param_needs_quantization" in inspect.getsource(core_model_loading.set_param_for_module)


def four_bits(**others: Any) -> Any:
    return BitsAndBytesConfig(**{"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16} | others)


def load(folder: Path, config: Any = None, **others: Any) -> Any:
    """On the CPU, in bf16."""
    others = {"device_map": {"": "cpu"}, "torch_dtype": torch.bfloat16} | others
    if config is not None:
        others["quantization_config"] = config
    return AutoModelForCausalLM.from_pretrained(folder, **others)


def states(model: Any) -> dict[str, Any]:
    """By the parameter's name: what undoes what was packed."""
    return {
        f"{path}.{leaf}": parametrizations[0].quant_state
        for path, module in model.named_modules()
        for leaf, parametrizations in getattr(module, "parametrizations", {}).items()
    }


def differences(one: Any, other: Any) -> list[str]:
    """The names in two models' state dicts that are not the same, or not in both."""
    mine, theirs = one.state_dict(), other.state_dict()
    odd = set(mine) ^ set(theirs)
    return sorted(odd | {name for name in set(mine) & set(theirs) if not _same(mine[name], theirs[name])})


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
