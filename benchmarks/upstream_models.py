"""Models under the names that tests ask a hub for: made here from configs, in a folder laid out as the hub's cache.

Their architecture is the name's. They are small, with random weights, so that the simulated card has all their values,
and their tokenizer knows single characters. What a test compares with the hub's own numbers, sizes or texts cannot come
out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from pytest_memleak.upstream.checkpoints import make_checkpoint

_REVISION = "0" * 40
_WORDS = {"vocab_size": 1000}
_NARROW = _WORDS | {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_GATED = _NARROW | {"num_key_value_heads": 2, "intermediate_size": 128}

# The arguments of a family's config.
_SMALL: dict[str, dict[str, Any]] = {
    "Bloom": _WORDS | {"hidden_size": 64, "n_layer": 2, "n_head": 4},
    "FalconMamba": _WORDS | {"hidden_size": 64, "num_hidden_layers": 2},
    "GPT2": _WORDS | {"n_embd": 64, "n_layer": 12, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
    "GPTNeo": _WORDS
    | {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"bos_token_id": 0, "eos_token_id": 1},
    "GPTNeoX": _NARROW | {"intermediate_size": 128},
    "GptOss": _GATED | {"num_local_experts": 4, "head_dim": 16},
    "Llama": _GATED,
    "Mistral": _GATED,
    "OPT": _NARROW | {"ffn_dim": 128, "word_embed_proj_dim": 64, "num_hidden_layers": 12},
    "Qwen2": _GATED,
    "T5": _WORDS | {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
    "Whisper": _WORDS
    | {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "architectures": ["WhisperForConditionalGeneration"]}
    | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    | {"suppress_tokens": None, "begin_suppress_tokens": None},
}
_NAMES = {
    "Bloom": (
        "bigscience/bloom-1b7",
        "bigscience/bloom-560m",
        "bigscience/bloomz-560m",
        "marcsun13/bloom-1b7_with_lm_head",
        "peft-internal-testing/tiny-random-BloomForCausalLM",
    ),
    "FalconMamba": ("tiiuae/falcon-mamba-tiny-dev",),
    "GPT2": ("gpt2", "openai-community/gpt2", "hf-internal-testing/tiny-random-gpt2"),
    "GPTNeo": ("EleutherAI/gpt-neo-125m",),
    "GPTNeoX": ("peft-internal-testing/tiny-random-GPTNeoXForCausalLM",),
    "GptOss": ("trl-internal-testing/tiny-GptOssForCausalLM",),
    "Llama": (
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "peft-internal-testing/tiny-random-LlamaForCausalLM",
        "trl-internal-testing/tiny-random-LlamaForCausalLM",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ),
    "Mistral": ("hf-internal-testing/tiny-random-MistralForCausalLM",),
    "OPT": (
        "facebook/opt-125m",
        "facebook/opt-350m",
        "peft-internal-testing/opt-125m",
        "peft-internal-testing/tiny-random-OPTForCausalLM",
    ),
    "Qwen2": ("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5",),
    "T5": ("google/flan-t5-base", "peft-internal-testing/tiny-random-T5ForConditionalGeneration"),
    "Whisper": ("openai/whisper-large",),
}


def make_cache(home: Path) -> None:
    """`home` is what HF_HOME is to be."""
    for family, names in _NAMES.items():
        for name in names:
            folder = home / "hub" / f"models--{name.replace('/', '--')}"
            (folder / "refs").mkdir(parents=True)
            (folder / "refs" / "main").write_text(_REVISION)
            config = getattr(transformers, f"{family}Config")(**_SMALL[family])
            made = make_checkpoint(config, folder / "snapshots" / _REVISION, dtype="float32")
            if family == "Bloom":  # tests ask for its older file of weights
                model = transformers.AutoModelForCausalLM.from_pretrained(made)
                torch.save(model.state_dict(), made / "pytorch_model.bin")
