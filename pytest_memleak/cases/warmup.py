"""What transformers' allocator warm-up asks of a card that it cannot have all of.

The models in fp16 are larger than what they may use, so that their loads end with an out-of-memory in every release and
under every fix: that is expected, and says nothing. What is asked is whether the warm-up before the first weight fits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch


def made(checkpoint: Any, layers: int) -> Any:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32, vocab_size=32000
    )
    return checkpoint(config, dtype="float16", sparse=True)


def load(checkpoint: Any, device: str, layers: int) -> None:
    from transformers import AutoModelForCausalLM

    folder = made(checkpoint, layers)
    with pytest.raises(torch.OutOfMemoryError):
        AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float16, device_map={"": device})


@pytest.mark.gpu_cap("16G", told=False)
@pytest.mark.allocator_warmup("fits")
def test_a_cap_that_nobody_is_told_of(checkpoint: Any, card: Any) -> None:
    """18.96 GiB, about what the pull request's model was asked for."""
    load(checkpoint, card.device, layers=49)


@pytest.mark.gpu_cap("24G", free="6G")
@pytest.mark.allocator_warmup("fits")
def test_little_is_free(checkpoint: Any, card: Any) -> None:
    """12.55 GiB: a model of seven billion parameters."""
    load(checkpoint, card.device, layers=32)


@pytest.mark.gpu_cap("16G", told=False)
@pytest.mark.allocator_warmup("fits")
def test_four_bits_under_a_cap(checkpoint: Any, card: Any) -> None:
    """The pull request's own story: the load fits into the cap with 5 GiB to spare, and died of its warm-up."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model = AutoModelForCausalLM.from_pretrained(
        made(checkpoint, layers=98),
        torch_dtype=torch.float16,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        device_map={"": card.device},
    )
    assert model.get_memory_footprint() < 12 * 1024**3
