"""What a block saves, on the host meanwhile."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch

from pytest_memleak.planner.running.saved import SavedOnHost
from pytest_memleak.planner.running.transfers import Transfers


class Counting(Transfers):
    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.copied: list[int] = []

    def host_memory(self, bytes_: int) -> torch.Tensor:
        self.copied.append(bytes_)
        return super().host_memory(bytes_)


@pytest.fixture(params=[False, True], ids=["at once", "ahead"])
def ahead(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_what_is_saved_twice_is_copied_once(ahead: bool) -> None:
    transfers = Counting()
    saved = SavedOnHost(transfers, lambda tensor: False, ahead)
    given = torch.arange(4.0, requires_grad=True)
    with saved.hooks():
        doubled = given * 2
        out = doubled.exp() * doubled[:2].sum() + doubled.square()
    saved.leave()
    saved.settle()
    saved.bring_back()
    out.sum().backward()
    # given * 2 saves a number; exp saves its result, and the products what they multiply.
    assert transfers.copied.count(16) == 2
    expected = torch.arange(4.0, requires_grad=True)
    doubled = expected * 2
    (doubled.exp() * doubled[:2].sum() + doubled.square()).sum().backward()
    assert given.grad is not None
    assert expected.grad is not None
    assert torch.equal(given.grad, expected.grad)


def test_a_tensor_that_was_written_to_is_another_one(ahead: bool) -> None:
    saved = SavedOnHost(Counting(), lambda tensor: False, ahead)
    given = torch.ones(3, requires_grad=True)
    held = torch.full((3,), 2.0)
    with saved.hooks():
        first = given * held
        held.add_(1)
        second = given * held
    saved.leave()
    saved.settle()
    saved.bring_back()
    if ahead:  # copied when all is through
        with pytest.raises(RuntimeError, match="was written to in place after it had been saved"):
            (first + second).sum().backward()
        return
    (first + second).sum().backward()
    assert given.grad is not None
    assert given.grad.tolist() == [5.0, 5.0, 5.0]


def test_what_stays_is_not_copied(ahead: bool) -> None:
    transfers = Counting()
    weight = torch.ones(5, requires_grad=True)
    saved = SavedOnHost(transfers, lambda tensor: tensor.numel() == 5, ahead)
    with saved.hooks():
        out = (weight * torch.ones(5)).sum()
    out.backward()
    assert transfers.copied == []


def test_views_of_one_storage_come_back_as_such(ahead: bool) -> None:
    transfers = Counting()
    saved = SavedOnHost(transfers, lambda tensor: False, ahead)
    whole = torch.randn(6, 4)
    left, right = whole[:, :2], whole[:, 2:].t()
    given = torch.ones(6, 2, requires_grad=True)
    with saved.hooks():
        out = (given * left).sum() + (given @ right.t()[:2, :].t()).sum()
    saved.leave()
    saved.settle()
    saved.bring_back()
    assert transfers.copied == [96]
    out.backward()
    assert given.grad is not None
    assert torch.allclose(given.grad, left + right.t()[:2].t().sum(1))


def test_what_torch_has_put_off_is_put_off_again(ahead: bool) -> None:
    """Conjugates and negatives are flags of a view: the storage is that of the other number."""

    def gradient(hooks: Any) -> torch.Tensor:
        given = torch.tensor([1 + 2j, 3 - 1j], requires_grad=True)
        other = torch.tensor([2 - 1j, 1 + 4j]).conj()
        with hooks:
            out = (given * other).abs().sum() + (given.real * other.imag).sum()
        if ahead:
            saved.leave()
            saved.settle()
            saved.bring_back()
        out.backward()
        assert given.grad is not None
        return given.grad

    saved = SavedOnHost(Counting(), lambda tensor: False, ahead)
    assert torch.equal(gradient(saved.hooks()), gradient(contextlib.nullcontext()))
