"""What a load needs beyond what stays, predicted: what is in hand, however many experts there are.

In a process of its own: bitsandbytes keeps tables on the first card that it is used on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")

from transformers import BitsAndBytesConfig

from pytest_memleak.budget.weights import held_bytes
from pytest_memleak.fixes._moe_outcome import Outcome
from pytest_memleak.fixes.moe_experts import FIX, quantize_experts
from pytest_memleak.prediction import predict
from pytest_memleak.upstream.checkpoints import make_checkpoint
from tests.fixes.moe_models import four_bits, gpt_oss, load, mixtral, qwen3_moe, states

HIDDEN, WIDTH = 256, 128
EXPERT = 2 * WIDTH * HIDDEN * 2
"""Gate and up of one, in bf16. A layer of attention has 64 × 256 values at most."""


@pytest.mark.parametrize(
    ("config", "experts", "nested"),
    [(qwen3_moe, 8, True), (qwen3_moe, 8, False), (mixtral, 192, True), (gpt_oss, 192, True), (gpt_oss, 8, False)],
)
def test_over_what_stays(tmp_path: Path, config: Callable[..., Any], experts: int, nested: bool) -> None:
    own = {"num_experts": experts} if config is qwen3_moe else {}
    wide = {"moe_intermediate_size" if config is qwen3_moe else "intermediate_size": WIDTH}
    made = config(hidden_size=HIDDEN, num_local_experts=experts, **own, **wide)
    # Not of zeros: bitsandbytes 0.48's kernel for the CPU, which computes what is known, crashes on blocks of them.
    make_checkpoint(made, tmp_path, tokenizer=False)
    asked = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=nested, bnb_4bit_quant_type="nf4")
    final = packed = 0

    def program(card: Any) -> Any:
        nonlocal final, packed
        with FIX.fixed():
            model = load(tmp_path, asked, device_map={"": card.device})
        final, packed = held_bytes(model), len(states(model))
        return model

    found = predict(program, "h200")
    assert found.doubt is None
    assert packed == 4
    assert 0 <= found.allocated_peak - final <= 2 * EXPERT


def test_after_a_load_one_tensor_is_there_twice(tmp_path: Path) -> None:
    make_checkpoint(gpt_oss(hidden_size=HIDDEN, num_local_experts=64, intermediate_size=WIDTH), tmp_path)
    before = 0
    outcome = Outcome("")

    def program(card: Any) -> Any:
        nonlocal before, outcome
        model = load(tmp_path, four_bits(), device_map={"": card.device})
        before = held_bytes(model)
        outcome = quantize_experts(model)
        return model

    found = predict(program, "h200")
    assert found.doubt is None
    assert len(outcome.names) == 4
    # Of the larger one: two thirds of one of two layers.
    assert 0 < found.allocated_peak - before <= outcome.after / 3 + 2 * EXPERT
