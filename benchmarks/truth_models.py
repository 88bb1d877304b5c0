"""The models of truth.py: from configurations with random weights, or as checkpoints of zeros."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LLAMAS = {
    "1.1B": (2048, 5632, 22, 32, 4, 32000, False),
    "33.7B": (8192, 22016, 48, 64, 8, 32000, False),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
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


def sparse_checkpoint(size: str, folder: Path, shard: int = 4_900_000_000) -> Path:
    """A bf16 checkpoint of zeros that takes no disk: headers, and holes. Made once for all rows of a run."""
    import torch
    from transformers import LlamaForCausalLM

    folder = folder / size
    if (folder / "model.safetensors.index.json").exists():
        return folder
    folder.mkdir(parents=True)
    config = llama(size)
    with torch.device("meta"):
        weights = {name: tuple(weight.shape) for name, weight in LlamaForCausalLM(config).state_dict().items()}
    shards: list[dict[str, Any]] = [{}]
    end = 0
    for name, shape in weights.items():
        bytes_ = 2 * torch.Size(shape).numel()
        if end and end + bytes_ > shard:
            shards.append({})
            end = 0
        shards[-1][name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + bytes_]}
        end += bytes_
    where: dict[str, str] = {}
    for index, entries in enumerate(shards, 1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + max(entry["data_offsets"][1] for entry in entries.values()))
        where |= dict.fromkeys(entries, name)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    total = sum(2 * torch.Size(shape).numel() for shape in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where})
    )
    return folder
