"""Loads that quantize a model's weights on the way, one for each case: a Llama of 1.1 billion parameters.

They are held to what such a load needs: what stays, the weight in hand, and what quantizing takes for itself. Beside
them stands upstream's own test, which holds OPT-350m to its fp16 size: a release with the bug may keep that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Load = Callable[..., None]
Make = Callable[..., Path]

pytestmark = [pytest.mark.max_peak("final_size + 2 * largest_param")]


@pytest.fixture
def llama(checkpoint: Make) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        vocab_size=32000,
    )
    return checkpoint(config, dtype="float16", sparse=True)  # zeros that take no disk


@pytest.fixture
def large_llama(checkpoint: Make) -> Path:
    """33.7 billion parameters."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=8192,
        intermediate_size=22016,
        num_hidden_layers=48,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    return checkpoint(config, dtype="float16", sparse=True)


@pytest.fixture
def opt(checkpoint: Make) -> Path:
    from transformers import OPTConfig

    config = OPTConfig(
        hidden_size=1024,
        ffn_dim=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        word_embed_proj_dim=512,
        do_layer_norm_before=False,
        vocab_size=50272,
    )
    return checkpoint(config, dtype="float16", sparse=True)


@pytest.fixture
def load(card: Any) -> Load:
    def load(folder: Path, dtype: str, **bits: bool) -> None:
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(**bits),
            device_map={"": card.device},
            torch_dtype=dtype,  # the name that transformers 4 and 5 both take
        )

    return load


def test_four_bits(load: Load, llama: Path) -> None:
    load(llama, "float16", load_in_4bit=True)


def test_eight_bits(load: Load, llama: Path) -> None:
    load(llama, "float16", load_in_8bit=True)


def test_four_bits_and_a_cast(load: Load, llama: Path) -> None:
    """What is stored in fp16 is asked for in bf16: no tensor is used as it is stored."""
    load(llama, "bfloat16", load_in_4bit=True)


def test_opt(load: Load, opt: Path) -> None:
    load(opt, "float16", load_in_4bit=True)


@pytest.mark.max_peak("fp16_size")
def test_opt_by_upstreams_own_limit(load: Load, opt: Path) -> None:
    load(opt, "float16", load_in_4bit=True)


# The last: where it runs out of memory, the failure's traceback holds what was loaded by then.
@pytest.mark.gpu_cap("32G")
def test_63_gib_of_fp16_under_32(load: Load, large_llama: Path) -> None:
    load(large_llama, "float16", load_in_4bit=True)
