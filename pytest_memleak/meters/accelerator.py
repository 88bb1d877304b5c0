"""What torch's caching allocator says about one device: requested, allocated and reserved bytes, now and at the peak.

With `workspaces.py` the only file of this room that touches torch's private API. Checked on torch 2.11 (CUDA) and 2.13
(no device): the counters behind `torch.cuda.memory_stats` cost 8 µs a call, the public wrapper 57. Other accelerators
go through the counters behind `torch.accelerator.memory_stats`, which torch has had since 2.9.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.meters.gauge import PlainGauge
from pytest_memleak.meters.reading import Levels

_COUNTERS = {"allocated": "allocated_bytes", "requested": "requested_bytes", "reserved": "reserved_bytes"}
_NOTHING = dict.fromkeys(_COUNTERS, 0)


class AcceleratorMemory(PlainGauge):
    """The gauge of one device. Before the program itself has used the device, it reads zero and makes no context."""

    kinds: tuple[str, ...] = tuple(_COUNTERS)
    how = "measured"

    def __init__(self, kind: str, index: int) -> None:
        self.device = f"{kind}:{index}"
        self._index = index
        if kind == "cuda":
            self._stats: Callable[[int], Any] = inspect.unwrap(torch._C._cuda_memoryStats)
            self._reset: Callable[[int], None] = inspect.unwrap(torch._C._cuda_resetPeakMemoryStats)
            self._started: Callable[[], bool] = torch.cuda.is_initialized
        elif hasattr(torch._C, "_accelerator_getDeviceStats"):
            self._stats = inspect.unwrap(torch._C._accelerator_getDeviceStats)
            self._reset = inspect.unwrap(torch._C._accelerator_resetPeakStats)
            self._started = torch._C._accelerator_isAllocatorInitialized
        else:
            raise Unavailable(
                f"torch {torch.__version__} has no memory counters for {kind}: it needs torch 2.9 or later"
            )
        self.fold: Callable[[], None] = lambda: None
        """Called before the program resets the peak; set by whoever shares this gauge."""

    def now(self) -> Levels:
        return self._levels("current")

    def take_peaks(self) -> Levels:
        peaks = self._levels("peak")
        if self._started():
            self._reset(self._index)
        return peaks

    def refusals(self) -> int:
        return int(self._stats(self._index).get("num_ooms", 0)) if self._started() else 0

    def begin(self) -> None:
        _resets.watch(self.device, lambda: self.fold())

    def end(self) -> None:
        _resets.unwatch(self.device)

    def blindness(self) -> str | None:
        if os.environ.get("PYTORCH_NO_CUDA_MEMORY_CACHING") and self.device.startswith("cuda"):
            return "PYTORCH_NO_CUDA_MEMORY_CACHING is set, which switches off the allocator that counts: unset it"
        return None

    def _levels(self, which: str) -> Levels:
        if not self._started():
            return _NOTHING
        stats = self._stats(self._index)
        return {kind: int(stats[counter]["all"][which]) for kind, counter in _COUNTERS.items()}


def release_cached_blocks() -> None:
    """Gives back what the allocator keeps for later: a request may be given a kept block that is larger than asked for,
    and all of that counts as allocated."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class _Resets:
    """A program that resets the allocator's peak would hide what came before: the gauges are asked first."""

    _NAMES = ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats")

    def __init__(self) -> None:
        self._folds: dict[str, Callable[[], None]] = {}
        self._originals: dict[str, Callable[..., Any]] = {}

    def watch(self, device: str, fold: Callable[[], None]) -> None:
        self._folds[device] = fold
        if self._originals:
            return
        for name in self._NAMES:
            if original := getattr(torch._C, name, None):
                self._originals[name] = original
                setattr(torch._C, name, self._folding(original))

    def unwatch(self, device: str) -> None:
        self._folds.pop(device, None)
        if not self._folds:
            for name, original in self._originals.items():
                setattr(torch._C, name, original)
            self._originals.clear()

    def _folding(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def reset(*args: Any) -> Any:
            for fold in list(self._folds.values()):
                fold()
            return original(*args)

        reset.__wrapped__ = original  # type: ignore[attr-defined]  # for gauges made meanwhile
        return reset


_resets = _Resets()
