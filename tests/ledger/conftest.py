"""Plants leaks: runs a program as a module of its own, and tells which tensors were not there before."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest
import torch

from pytest_memleak.ledger.graph import living_tensors, storage_key
from pytest_memleak.ledger.owners import explain

NAME = "leaky"


class Planted:
    """A program that has run, and what it left behind."""

    def __init__(self, source: str) -> None:
        gc.collect()
        self._before = {key[0] for tensor in living_tensors() if (key := storage_key(tensor))}
        self._without = {id(tensor) for tensor in living_tensors() if storage_key(tensor) is None}
        self.module = types.ModuleType(NAME)
        sys.modules[NAME] = self.module
        exec(compile(source, f"{NAME}.py", "exec"), self.module.__dict__)

    def tensors(self) -> list[torch.Tensor]:
        return [
            tensor
            for tensor in living_tensors()
            if (key[0] not in self._before if (key := storage_key(tensor)) else id(tensor) not in self._without)
        ]

    def explained(self, total: int | None = None, **options: Any) -> tuple[str, ...]:
        """`total`: what the allocator would say, where that is more than tensors that Python sees."""
        tensors = self.tensors()
        seen = sum({key[0]: key[1] for tensor in tensors if (key := storage_key(tensor))}.values())
        # However busy the machine is, time is not what ends the search.
        return explain(tensors, seen if total is None else total, **({"budget": 60.0} | options))


class Explained(Protocol):
    def __call__(self, source: str, total: int | None = None, **options: Any) -> tuple[str, ...]: ...


@pytest.fixture
def plant() -> Iterator[Callable[[str], Planted]]:
    """Runs a program, and removes it with all it left behind after the test. The collector is off meanwhile."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    yield lambda source: Planted("import torch\n" + source)
    if (planted := sys.modules.pop(NAME, None)) is not None:
        planted.__dict__.clear()  # some of what was planted is in cycles that nobody else breaks
    if collecting:
        gc.enable()
    gc.collect()


@pytest.fixture
def explained(plant: Callable[[str], Planted]) -> Explained:
    return lambda source, total=None, **options: plant(source).explained(total, **options)
