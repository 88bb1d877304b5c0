"""Uninitialized memory is full of NaN while poisoned, everything is put back, and no byte more is allocated."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from pytest_memleak.meters import shared
from pytest_memleak.upstream.poison import Poison

filling: Any = torch.utils.deterministic


def state() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        bool(filling.fill_uninitialized_memory),
    )


def is_poisoned() -> bool:
    return all(
        bool(torch.isnan(tensor.float()).all())
        for tensor in (torch.empty(1000), torch.empty_like(torch.ones(9)), torch.zeros(0).resize_(7))
    )


def test_it_fills_and_goes() -> None:
    before = state()
    poison = Poison()
    poison.off()  # what is not on may be switched off
    poison.on()
    poison.on()
    assert is_poisoned()
    poison.off()
    assert state() == before
    poison.on()
    assert is_poisoned()
    poison.off()
    assert state() == before


@pytest.mark.parametrize("warn_only", [True, False])
@pytest.mark.parametrize("fills", [True, False])
def test_what_the_program_wants_stays(warn_only: bool, fills: bool) -> None:
    before = state()
    try:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        filling.fill_uninitialized_memory = fills
        wanted = state()
        poison = Poison()
        poison.on()
        assert state() == (True, warn_only, True)
        poison.off()
        assert state() == wanted
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        filling.fill_uninitialized_memory = before[2]


def test_nobody_is_warned_of_what_nobody_asked_for() -> None:
    def not_deterministic() -> None:
        torch.histc(torch.ones(3))
        torch.nn.functional.max_unpool1d(torch.ones(1, 1, 2), torch.tensor([[[0, 2]]]), [2])

    poison = Poison()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        poison.on()
        not_deterministic()
        with pytest.raises(UserWarning, match="mine"):
            warnings.warn("mine", stacklevel=1)
        poison.off()
        assert list(warnings.filters) == filters
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
            not_deterministic()
    finally:
        torch.use_deterministic_algorithms(False)


def _train() -> tuple[int, int]:
    memory = shared.cpu_memory()
    memory.take_peaks()
    before = memory.now()["allocated"]
    model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 64), torch.nn.LayerNorm(64))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.arange(50)).square().mean().backward()
        optimizer.step()
    torch.empty(1000).resize_(100_000)
    return memory.now()["allocated"] - before, memory.take_peaks()["allocated"] - before


def test_not_a_byte_more_is_allocated() -> None:
    if not shared.cpu_memory().can_enforce:
        pytest.skip("needs the engine that sees each allocation")
    _train()
    plain = _train()
    poison = Poison()
    poison.on()
    try:
        poisoned = _train()
    finally:
        poison.off()
    assert poisoned == plain
    assert plain[1] > 100_000
