"""bitsandbytes' optimizers with states in eight bits, and in memory that the driver moves."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.prediction import PredictedCard, Prediction

bitsandbytes: Any = pytest.importorskip("bitsandbytes")

NUMBERS = 4096 * 4096
WEIGHT = 4 * NUMBERS
SCALES = 2 * 4 * NUMBERS // 256
TABLES = 2 * 4 * 256
WORKSPACES = 2 * 32 * 2**20


def two_steps(optimizer: str, width: int = 4096, copies: int = 1) -> Prediction:
    def train(card: PredictedCard) -> Any:
        layers = [torch.nn.Linear(4096, width, bias=False, device=card.device) for _ in range(copies)]
        steps = getattr(bitsandbytes.optim, optimizer)([layer.weight for layer in layers])
        for _ in range(2):
            for layer in layers:
                layer(torch.randn(8, 4096, device=card.device)).sum().backward()
            steps.step()
            steps.zero_grad()
        return layers, steps

    found = pytest_memleak.predict(train)
    assert found.doubt is None
    return found


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ("AdamW", 8 * NUMBERS),
        ("AdamW8bit", 2 * NUMBERS + SCALES + TABLES),
        ("Adam8bit", 2 * NUMBERS + SCALES + TABLES),
        ("PagedAdamW", 0),
        ("PagedAdamW8bit", SCALES + TABLES),
        ("PagedLion8bit", SCALES // 2 + TABLES // 2),
    ],
)
def test_what_their_states_take_of_the_card(optimizer: str, state: int) -> None:
    assert two_steps(optimizer).requested == WEIGHT + WORKSPACES + state


def test_small_states_are_on_the_card_after_all() -> None:
    small, large = 24, 25  # rows of 4096: fewer than 100,000 numbers, and more
    assert two_steps("PagedAdamW", small).requested == two_steps("AdamW", small).requested
    assert two_steps("AdamW", large).requested - two_steps("PagedAdamW", large).requested == 2 * 4 * 4096 * large


def test_states_take_no_memory_of_this_machine() -> None:
    def resident() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    two_steps("PagedAdamW")
    before = resident()
    two_steps("PagedAdamW", copies=20)  # 2.5 GiB of state
    assert resident() - before < 2**28


def test_trainer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8, vocab_size=1000
    )

    def train(optimizer: str) -> int:
        def run(card: PredictedCard) -> Any:
            model = transformers.LlamaForCausalLM(config).to(card.device)
            options = transformers.TrainingArguments(
                str(tmp_path), max_steps=2, optim=optimizer, save_strategy="no", report_to="none", disable_tqdm=True
            )
            rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 1000, (16, 32))]
            transformers.Trainer(model=model, args=options, train_dataset=rows).train()
            return model

        found = pytest_memleak.predict(run)
        assert found.doubt is None
        return found.requested_peak

    paged, eight, full = (train(name) for name in ("paged_adamw_8bit", "adamw_bnb_8bit", "adamw_torch"))
    assert paged < eight < full
