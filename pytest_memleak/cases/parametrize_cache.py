"""Three steps of LoRA on a Qwen3-MoE whose experts are quantized in 4 bits by bitsandbytes' own function.

What a step needs of an expert in full precision it may keep until the step is over, and no longer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytestmark = [pytest.mark.max_leak]

RANK = 4


class LoRA(torch.nn.Module):
    """A linear layer that is not trained, and a small part beside it that is."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        where = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base
        self.down = torch.nn.Linear(base.in_features, RANK, bias=False, **where)
        self.up = torch.nn.Linear(RANK, base.out_features, bias=False, **where)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.base(hidden) + self.up(self.down(hidden))
        return adapted


def quantize_experts(model: torch.nn.Module) -> None:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    experts = [(module, name) for module in model.modules() for name, one in module.named_parameters(recurse=False)
               if one.ndim == 3]  # fmt: skip
    for module, name in experts:
        replace_parameter_4bit(module, name, compress_statistics=True)


@pytest.fixture(scope="module", autouse=True)
def tables(card: Any) -> None:
    """What bitsandbytes computes for its first tensor and keeps: two kilobytes that are no test's leak."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    def some() -> torch.Tensor:
        # No variable of this frame, which a warning that bitsandbytes logs on import keeps for a while. And no two
        # blocks alike: 0.48 divides by how far their scales are apart, and dies of it.
        return torch.arange(1 << 15, dtype=torch.bfloat16, device=card.device)

    dequantize_4bit(*quantize_4bit(some(), compress_statistics=True, quant_type="nf4"))


@pytest.fixture
def model(card: Any) -> Any:
    """100,663,296 bytes of experts in bf16: 4 layers of 32 experts of 512 by 256."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        hidden_size=512,
        intermediate_size=512,
        moe_intermediate_size=256,
        num_experts=32,
        num_experts_per_tok=4,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=1024,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(card.device)
    model.requires_grad_(False)
    quantize_experts(model)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LoRA(layer.self_attn.q_proj)
    return model.train()


def three_steps(model: Any, device: str) -> None:
    tokens = torch.arange(64, device=device).reshape(2, 32)
    for _ in range(3):
        model(tokens, labels=tokens).loss.backward()
        model.zero_grad(set_to_none=True)


def test_checkpointed(model: Any, card: Any) -> None:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    three_steps(model, card.device)


@pytest.mark.memleak_fix("parametrize_cache")
def test_checkpointed_mended(model: Any, card: Any) -> None:
    test_checkpointed(model, card)


def test_checkpointed_reentrantly(model: Any, card: Any) -> None:
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    three_steps(model, card.device)


def test_without_checkpointing(model: Any, card: Any) -> None:
    three_steps(model, card.device)
