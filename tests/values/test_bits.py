"""Two tensors have the same bits exactly if their number says so."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_memleak.values.bits import bits_of

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2)
ALL = (*FLOATS, torch.int64, torch.int8, torch.bool, torch.complex64)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8, 9, 40_000, 300_001])
def test_each_change_of_a_byte_shows(dtype: torch.dtype, count: int) -> None:
    tensor = torch.randn(count).to(dtype)
    number = bits_of(tensor)
    assert bits_of(tensor.clone()) == number
    for place in {0, count // 2, count - 1}:
        other = tensor.clone()
        raw = other.view(torch.uint8)
        raw[place * tensor.element_size()] ^= 1
        assert bits_of(other) != number


def test_signs_places_and_nan_by_their_bits() -> None:
    tensor = torch.randn(64)
    two_signs = tensor.clone()
    two_signs[[3, 9]] *= -1
    swapped = tensor.clone()
    swapped[[3, 9]] = tensor[[9, 3]]
    nan, other_nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert math.isnan(nan)
    assert math.isnan(other_nan)
    assert len({bits_of(one) for one in (tensor, two_signs, swapped)}) == 3
    assert bits_of(nan) != bits_of(other_nan)
    assert bits_of(torch.tensor(0.0)) != bits_of(torch.tensor(-0.0))
    assert bits_of(torch.zeros(8)) != bits_of(torch.zeros(9))


def test_the_layout_is_none_of_it() -> None:
    tensor = torch.randn(300, 500)
    number = bits_of(tensor)
    assert bits_of(tensor.t().contiguous().t()) == number
    assert bits_of(torch.zeros(600, 501)[::2, 1:].copy_(tensor)) == number
    assert bits_of(torch.cat([torch.zeros(1), tensor.view(-1)])[1:]) == number
    assert bits_of(torch.ones(1).expand(1000)) == bits_of(torch.ones(1000))
    pairs = torch.randn(9, dtype=torch.complex64)
    assert bits_of(pairs.conj()) == bits_of(pairs.conj().resolve_conj()) != bits_of(pairs)


def test_no_word_has_a_partner() -> None:
    """With the sign shifted in, a word and its complement would be mixed alike from the first step on."""
    words = torch.randint(-(2**62), 2**62, (64,))
    assert len({bits_of(word) for word in (*words[:, None], *(~words)[:, None])}) == 128
    assert bits_of(torch.tensor([12345])) != bits_of(torch.tensor([-4354685564936857700]))


@pytest.mark.parametrize("count", [1, 4096, 4097, 300_001])
def test_how_much_is_mixed_at_a_time_is_none_of_it(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It differs between devices, and what is on one is compared with what is on another."""
    tensor = torch.randn(count)
    number = bits_of(tensor)
    for block in (1 << 12, 1 << 14, 1 << 24):
        monkeypatch.setattr("pytest_memleak.values.bits._BLOCK", {"cpu": block})
        assert bits_of(tensor) == number


def test_blocks_have_places_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_memleak.values.bits._BLOCK", {"cpu": 1 << 12})
    first, second = torch.randn(2, 1 << 10)
    assert bits_of(torch.cat([first, second])) != bits_of(torch.cat([second, first]))
