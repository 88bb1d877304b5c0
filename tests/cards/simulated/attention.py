"""What attention comes to on the simulated card, by whichever kernel a card would take: the CPU's own numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation

WIDTH, LENGTH, HEADS = 16, 9, 4


def tensors(dtype: torch.dtype, heads: int = HEADS) -> list[torch.Tensor]:
    shapes = [(2, count, LENGTH, WIDTH) for count in (HEADS, heads, heads, HEADS)]
    return [torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype) for shape in shapes]


def attended(given: list[torch.Tensor], device: str, mask: torch.Tensor | None, causal: bool) -> list[torch.Tensor]:
    """The result, and the gradients of query, key, value and a mask of numbers."""
    query, key, value = (one.to(device, copy=True).requires_grad_() for one in given[:3])
    leaves = [query, key, value]
    if mask is not None:
        mask = mask.to(device, copy=True)
        if mask.is_floating_point():
            leaves.append(mask.requires_grad_())
    grouped = query.size(1) != key.size(1)
    found = F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped)
    found.backward(given[3].to(device))
    return [found.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def mask_of(kind: str, dtype: torch.dtype) -> torch.Tensor | None:
    seen = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
    seen[0, :, :, 5:] = False
    if kind == "seen":
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -2.0) if kind == "numbers" else None


@pytest.mark.parametrize("kind", ["all", "causal", "seen", "numbers"])
@pytest.mark.parametrize(
    ("card", "dtype", "heads"),
    [
        ("h200", torch.float32, HEADS),
        ("h200", torch.bfloat16, HEADS),
        ("h200", torch.float16, 2),
        ("a100-80g", torch.float16, HEADS),
        ("a100-80g", torch.float16, 2),
        ("t4", torch.float16, HEADS),
    ],
)
def test_values_and_gradients(simulation: Simulation, card: str, dtype: torch.dtype, heads: int, kind: str) -> None:
    given, mask = tensors(dtype, heads), mask_of(kind, dtype)
    exact = mask.float() if mask is not None and kind == "numbers" else mask
    expected = attended([one.float() for one in given], "cpu", exact, kind == "causal")
    with simulation.other_cards(cards_of(card)):
        found = attended(given, "cuda", mask, kind == "causal")
        assert len(found) == len(expected) == (5 if kind == "numbers" else 4)
        for one, like in zip(found, expected, strict=True):
            assert torch.ops.memleak_card.knows(one)
            torch.testing.assert_close(one.cpu().float(), like, atol=3e-2, rtol=3e-2)
        del found, one


def test_with_dropout_nobody_knows(simulation: Simulation) -> None:
    query, key, value, _ = (one.cuda() for one in tensors(torch.bfloat16))
    assert not torch.ops.memleak_card.knows(F.scaled_dot_product_attention(query, key, value, dropout_p=0.5))
