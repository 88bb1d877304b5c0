"""Tiny models of transformers with random weights, of three families and with tied and untied heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tiny = Callable[..., Any]
Load = Callable[..., Any]


@pytest.fixture
def transformers() -> Any:
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.fixture
def tiny(transformers: Any) -> Tiny:
    def build(family: str = "llama", *, tied: bool = True) -> Any:
        if family == "llama":
            sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
            config = transformers.LlamaConfig(vocab_size=1000, tie_word_embeddings=tied, **sizes)
            return transformers.LlamaForCausalLM(config)
        if family == "opt":
            sizes = {"hidden_size": 64, "ffn_dim": 100, "num_hidden_layers": 2, "num_attention_heads": 4}
            sizes |= {"max_position_embeddings": 128, "word_embed_proj_dim": 64}
            config = transformers.OPTConfig(vocab_size=1000, tie_word_embeddings=tied, **sizes)
            return transformers.OPTForCausalLM(config)
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
        config = transformers.GPT2Config(vocab_size=1000, tie_word_embeddings=tied, **sizes)
        return transformers.GPT2LMHeadModel(config)

    return build


@pytest.fixture
def checkpoint(tiny: Tiny, tmp_path: Path) -> str:
    """A tied Llama in fp32."""
    tiny().save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama")


@pytest.fixture
def load(transformers: Any) -> Load:
    """Loads a folder on the CPU, in fp16 or quantized by bitsandbytes."""
    import torch

    def from_pretrained(folder: str, *, bits: int = 16, **options: Any) -> Any:
        if bits < 16:
            pytest.importorskip("bitsandbytes")
            if transformers.__version__.startswith("4."):
                pytest.skip("transformers 4 may not use bitsandbytes on the CPU")
            kind = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if bits == 4 else {"load_in_8bit": True}
            options["quantization_config"] = transformers.BitsAndBytesConfig(**kind)
        options = {"device_map": {"": "cpu"}, "torch_dtype": torch.float16} | options
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)

    return from_pretrained
