"""Loads of mixtures in 4 bits: Qwen3-MoE, Mixtral and GPT-OSS with 32 experts in each of 4 layers.

Experts are 92 % of such a model. In 4 bits all of it comes to a little more than a quarter of its fp16 size; releases
before 5 ask for half of that first, to warm the allocator up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
Load = Callable[[Any], None]

pytestmark = [pytest.mark.max_peak("0.6 * fp16_size")]

HIDDEN, WIDTH, EXPERTS = 512, 256, 32
ALIKE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def qwen3_moe() -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        **ALIKE, num_experts=EXPERTS, moe_intermediate_size=WIDTH, intermediate_size=2 * HIDDEN, head_dim=64
    )


def mixtral() -> Any:
    from transformers import MixtralConfig

    return MixtralConfig(**ALIKE, num_local_experts=EXPERTS, intermediate_size=WIDTH)


def gpt_oss() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(**ALIKE, num_local_experts=EXPERTS, intermediate_size=WIDTH, head_dim=64)


@pytest.fixture
def load(card: Any, checkpoint: Make) -> Load:
    def load(config: Any) -> None:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        four_bits = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype="bfloat16",
        )
        AutoModelForCausalLM.from_pretrained(
            checkpoint(config, dtype="bfloat16", sparse=True),  # zeros that take no disk
            quantization_config=four_bits,
            device_map={"": card.device},
            torch_dtype="bfloat16",  # the name that transformers 4 and 5 both take
        )

    return load


def test_qwen3_moe(load: Load) -> None:
    load(qwen3_moe())


@pytest.mark.memleak_fix("moe_experts")
def test_qwen3_moe_mended(load: Load) -> None:
    load(qwen3_moe())


def test_mixtral(load: Load) -> None:
    load(mixtral())


def test_gpt_oss(load: Load) -> None:
    """Its checkpoint has a layer's experts in one tensor."""
    load(gpt_oss())


@pytest.mark.memleak_fix("moe_experts")
def test_gpt_oss_mended(load: Load) -> None:
    load(gpt_oss())
