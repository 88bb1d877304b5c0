"""The models of truth.py: from configurations with random weights, or as checkpoints of zeros."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_LLAMAS = {
    "1.1B": (2048, 5632, 22, 32, 4, 32000, False),
    "33.7B": (8192, 22016, 48, 64, 8, 32000, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
    "Llama-3-70B": (8192, 28672, 80, 64, 8, 128256, False),
}


def llama(size: str) -> Any:
    from transformers import LlamaConfig

    hidden, intermediate, layers, heads, key_values, vocabulary, tied = _LLAMAS[size]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_values,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


def gpt2() -> Any:
    """GPT-2 as it was published, the one with 124 million parameters."""
    from transformers import GPT2Config

    return GPT2Config(bos_token_id=None, eos_token_id=None, pad_token_id=0)


def built(make: Callable[[], Any], device: str, dtype: str = "bfloat16") -> Any:
    """A model with random weights, made where it stays."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            return make()
    finally:
        torch.set_default_dtype(before)


def causal(config: Any) -> Callable[[], Any]:
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_config(config)


def sparse_checkpoint(size: str, folder: Path) -> Path:
    """A bf16 checkpoint of zeros that takes no disk, made once for all rows of a run."""
    from pytest_memleak.upstream.checkpoints import make_checkpoint

    folder = folder / size
    return folder if folder.exists() else make_checkpoint(llama(size), folder, sparse=True, tokenizer=False)
