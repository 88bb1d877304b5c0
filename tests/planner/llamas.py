"""A small Llama, its blocks, and plans of all sorts for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from pytest_memleak.planner.optimizing import MakeOptimizer
from pytest_memleak.planner.plan import Plan

BLOCKS = 6


def llama(**others: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=200, num_hidden_layers=BLOCKS, **sizes | others))


def adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=4, target_modules=r".*(q_proj|v_proj|up_proj|down_proj)"))


def blocks_of(model: nn.Module) -> list[nn.Module]:
    layers = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "layers")
    return list(layers.children())


def adamw(**settings: Any) -> MakeOptimizer:
    return lambda weights: torch.optim.AdamW(weights, **settings)


def batches(count: int, rows: int = 2, tokens: int = 32) -> Iterator[dict[str, Any]]:
    """Two that take turns: they can be learnt by heart."""
    pair = torch.randint(0, 200, (2, rows, tokens), generator=torch.Generator().manual_seed(1))
    for number in range(count):
        ids = pair[number % 2]
        yield {"input_ids": ids, "labels": ids, "use_cache": False}


def plans(blocks: int = BLOCKS) -> dict[str, Plan]:
    """Each kind by itself, and all together."""
    made: dict[str, Callable[[], Plan]] = {
        "all stays": lambda: Plan(blocks, 0),
        "one buffer": lambda: Plan(0, 1),
        "a buffer ahead": lambda: Plan(0, 2),
        "half is streamed": lambda: Plan(blocks // 2, 2),
        "checkpointed": lambda: Plan(blocks, 0, n_checkpoint=blocks),
        "half is checkpointed": lambda: Plan(blocks, 0, n_checkpoint=blocks // 2),
        "offloaded": lambda: Plan(blocks, 0, n_offload=blocks),
        "one is offloaded": lambda: Plan(blocks, 0, n_offload=1),
        "swapped": lambda: Plan(blocks, 0, n_swap=blocks),
        "two are swapped": lambda: Plan(blocks, 0, n_swap=2),
        "streamed and checkpointed": lambda: Plan(0, 2, n_checkpoint=blocks),
        "streamed and swapped": lambda: Plan(0, 2, n_swap=blocks),
        "streamed and offloaded": lambda: Plan(0, 1, n_offload=blocks),
        "everything": lambda: Plan(1, 2, n_swap=2, n_checkpoint=2, n_offload=1),
    }
    return {name: make() for name, make in made.items()}
