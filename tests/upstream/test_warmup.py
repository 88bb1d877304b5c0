"""The spy on transformers' allocator warm-up, and what a device map's targets are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.upstream.targets import accelerators_of, as_accelerator
from tests.alone import run_alone


def test_the_spy(pytester: pytest.Pytester) -> None:
    pytest.importorskip("transformers")
    run_alone(pytester, Path(__file__).with_name("warmups.py"))


@pytest.mark.parametrize("target", ["cpu", "disk", "meta", torch.device("cpu"), torch.device("meta")])
def test_what_is_no_accelerator(target: Any) -> None:
    assert as_accelerator(target) is None


@pytest.mark.parametrize("target", [1, "1", "cuda:1", torch.device("cuda", 1)])
def test_one_device_in_all_its_spellings(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_memleak.upstream.targets._kind", lambda: "cuda")
    assert as_accelerator(target) == torch.device("cuda", 1)


def test_without_an_index_the_current_device_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert as_accelerator("cuda") == as_accelerator(torch.device("cuda")) == torch.device("cuda", 3)
    monkeypatch.setattr(torch.xpu, "current_device", lambda: 2)
    assert as_accelerator("xpu") == torch.device("xpu", 2)


def test_each_target_of_a_map_once() -> None:
    mixed = {"a": "cuda:1", "b": "cpu", "c": torch.device("cuda", 0), "d": "disk", "e": "cuda:1", "f": "meta"}
    assert accelerators_of(mixed) == [torch.device("cuda", 1), torch.device("cuda", 0)]
    assert accelerators_of("cuda:1") == [torch.device("cuda", 1)]
    assert accelerators_of({"": "cpu"}) == []
