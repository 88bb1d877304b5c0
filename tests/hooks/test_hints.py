"""Failures that have to do with the card, and whose own words do not say so: on any card."""

from __future__ import annotations

import pytest

from tests.conftest import Run

# From 5.2 on the warm-up goes by the card's size alone; the import is what takes the time.
pytest.importorskip("transformers", minversion="5.2")

_LOADS = """
    import pytest, torch, transformers

    def load(checkpoint, card):
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, vocab_size=100
        )
        transformers.AutoModelForCausalLM.from_pretrained(checkpoint(config), device_map="cuda")

    @pytest.mark.gpu_cap("1G")
    def test_too_small_for_it(checkpoint, card):
        load(checkpoint, card)

    @pytest.mark.gpu_cap("1G", told=False)
    def test_not_told(checkpoint, card):
        load(checkpoint, card)

    @pytest.mark.gpu_cap("1G")
    def test_negative_for_a_reason_of_its_own():
        torch.empty(-3)
"""


def test_a_warm_up_of_less_than_nothing(run_apart: Run) -> None:
    """Whether the card is real or simulated."""
    result = run_apart(_LOADS)
    result.assert_outcomes(passed=1, failed=2)
    said = "on a card of 1 GiB (test_it.py:*gpu_cap) that is less than nothing"
    result.stdout.fnmatch_lines([f"transformers' caching_allocator_warmup asks for *{said}."])
    assert result.stdout.str().count("less than nothing") == 1
