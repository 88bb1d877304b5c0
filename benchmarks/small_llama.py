"""The model that the benchmarks train: a Llama small enough for a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def training_step(
    hidden: int = 256, layers: int = 4, vocabulary: int = 4000, batch: int = 2, tokens: int = 128, device: str = "cpu"
) -> Callable[[], None]:
    """Forward, backward and optimizer on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=vocabulary,
    )
    model = LlamaForCausalLM(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    batch_of_tokens = torch.randint(0, vocabulary, (batch, tokens), device=device)

    def step() -> None:
        model(batch_of_tokens, labels=batch_of_tokens, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
