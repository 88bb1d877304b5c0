"""What this process holds, asked of a torch that is fed, and of none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pytest_memleak.workers import own
from pytest_memleak.workers.fitting import CONTEXT


def _torch(monkeypatch: pytest.MonkeyPatch, reserved: list[int], initialized: bool = True) -> list[str]:
    asked: list[str] = []

    def empty() -> None:
        asked.append("emptied")
        raise RuntimeError("CUDA error: device-side assert triggered")

    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: len(reserved),
        memory_reserved=lambda index: reserved[index],
        empty_cache=empty,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return asked


def test_without_torch_it_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    own.let_go()
    assert own.held(["a"]) == {}
    assert "torch" not in sys.modules


def test_before_the_first_tensor_it_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _torch(monkeypatch, [0], initialized=False)
    own.let_go()
    assert own.held(["a"]) == {}
    assert not asked


def test_a_context_and_what_is_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch, [0, 0, 7])
    assert own.held(["a", "b", "c", "d"]) == {"a": CONTEXT, "c": CONTEXT + 7}


def test_a_card_that_has_failed_is_given_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _torch(monkeypatch, [5])
    own.let_go()
    assert asked == ["emptied"]
