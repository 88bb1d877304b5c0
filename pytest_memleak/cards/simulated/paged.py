"""The state of bitsandbytes' paged optimizers: memory that the driver moves between card and host as it is needed.

torch's allocator has no part in it, on a card as here. Here it is address space, whose pages nobody writes to.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from pytest_memleak.upstream.imports import AfterImport
from pytest_memleak.upstream.patches import Patch


def paged_states() -> AfterImport:
    """While entered, bitsandbytes has paged memory; its own comes from CUDA."""
    return AfterImport({"bitsandbytes.functional": _patches})


def _patches(functional: ModuleType) -> list[Patch]:
    return [
        Patch(functional, "get_paged", lambda found: _memory, parameters=("shape", "dtype", "device")),
        Patch(functional, "prefetch_tensor", lambda found: _nothing, parameters=("A", "to_cpu")),
        Patch(functional, "elementwise_func", _done_by_torch, parameters=("func_name", "A", "B", "value")),
    ]


def _memory(*shape: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> torch.Tensor:
    numbers = math.prod(shape)
    size = numbers * dtype.itemsize
    # By its address, as bitsandbytes does: it counts as memory of the host's then, and not as a file.
    pages = (ctypes.c_char * size).from_buffer(mmap.mmap(-1, size))
    memory = torch.frombuffer(pages, dtype=dtype, count=numbers).view(shape)
    paged: Any = memory
    paged.is_paged = True
    paged.page_deviceid = device.index if device is not None else 0
    return memory


def _nothing(A: torch.Tensor, to_cpu: bool = False) -> None:
    """It is wherever it is wanted."""


def _done_by_torch(found: Callable[..., None]) -> Callable[..., None]:
    def elementwise_func(func_name: str, A: torch.Tensor, B: Any, value: float, prefetch: bool = True) -> None:
        if not getattr(A, "is_paged", False):
            found(func_name, A, B, value, prefetch)
        elif func_name == "_mul":
            A.mul_(B)
        elif value:  # new memory is zero: its pages stay unwritten
            A.fill_(value)

    return elementwise_func
