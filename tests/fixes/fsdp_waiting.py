"""What is loaded by ranks that wait for rank 0's weights, and what they have of it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from pytest_memleak.cases import fsdp_loads

transformers: Any = importlib.import_module("transformers")

TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}


def saved(folder: Path, sizes: dict[str, int], kind: Any = None, **others: Any) -> Path:
    torch.manual_seed(0)
    config = fsdp_loads.config(**sizes)
    config.tie_word_embeddings = others.pop("tied", False)
    model = (kind or transformers.LlamaForCausalLM)(config).to(torch.float16)
    if kind is not None:
        model.scale = torch.arange(1, config.vocab_size + 1) / config.vocab_size
    model.save_pretrained(folder, **others)
    return folder


def all_on_meta(model: Any) -> bool:
    return all(parameter.is_meta for parameter in model.parameters())
