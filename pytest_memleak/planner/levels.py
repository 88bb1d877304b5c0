"""How much is allocated on the card, now and at most since it was last asked."""

from __future__ import annotations

import sys
from typing import Protocol

import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.meters import shared


class Levels(Protocol):
    how: str

    def now(self) -> int: ...

    def highest(self) -> int:
        """Since the last call."""

    def close(self) -> None: ...


def levels_of(device: torch.device) -> Levels:
    if device.type == "cpu":
        return _OnCpu()
    if device.type == "cuda":
        return _OnCard(device)
    raise Unavailable(f"a step is profiled on a CUDA device, real or simulated, or on the CPU, and not on {device}")


class _OnCard:
    """By torch's public counters, which the simulated card answers too."""

    def __init__(self, device: torch.device) -> None:
        self.how = "predicted" if simulated() else "measured"
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)

    def now(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def highest(self) -> int:
        highest = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return highest

    def close(self) -> None:
        pass


class _OnCpu:
    """What torch allocates. What plans put on the host is not torch's there, and does not count."""

    def __init__(self) -> None:
        self._gauge = shared.cpu_tensors()
        self._window = self._gauge.window()
        self._window.open()
        self.how = self._gauge.gauge.how

    def now(self) -> int:
        return self._gauge.gauge.now()["allocated"]

    def highest(self) -> int:
        return self._gauge.take_peaks()["allocated"]

    def close(self) -> None:
        self._window.close()


def simulated() -> bool:
    process = sys.modules.get("pytest_memleak.cards.simulated.process")
    return process is not None and process.in_force() is not None
