"""How much room a device has for one more request: what it has in all, what the process may take, what is free.

The limit of the process counts, which `mem_get_info` does not tell: that of a cap which nobody is told of, and one that
the program has set itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_memleak.plan import Cap


@dataclass(frozen=True)
class Room:
    """Of one device at one moment, in bytes."""

    total: int
    """The size of the card; with a cap that programs are told of, that cap."""
    cap: int | None
    """What this process may reserve in all; None: as much as there is."""
    allocated: int
    free: int
    """What nobody holds, and what this process's allocator holds unused: it gives that back before it refuses."""

    @property
    def under_cap(self) -> int | None:
        return None if self.cap is None else max(0, self.cap - self.allocated)

    @property
    def bytes(self) -> int:
        """The largest request that may fit. Whether it does is known when it was made: memory may be in pieces."""
        return self.free if self.under_cap is None else min(self.free, self.under_cap)


def of_allocator(
    *, free: int, total: int, limit: int | None, allocated: int, reserved: int, cap: Cap | None = None
) -> Room:
    """`free`, `total` and `limit` (what the allocator may reserve) as a program reads them; `cap` is the test's."""
    unused = reserved - allocated
    if cap is not None:
        if cap.free is not None and not cap.told and limit is not None and limit < cap.bytes:
            # Somebody else occupies the rest: that is what the limit stands for, and the card is as big as the cap.
            free, limit = min(free, max(0, limit - reserved)), cap.bytes
        limit = cap.bytes if limit is None else min(limit, cap.bytes)
    return Room(total, limit, allocated, free + unused)


def of_cuda(index: int, cap: Cap | None = None) -> Room:
    """Of a device of CUDA or ROCm, real or simulated."""
    free, total = torch.cuda.mem_get_info(index)
    return of_allocator(
        free=free,
        total=total,
        limit=_limit(torch.cuda, index, total),
        allocated=torch.cuda.memory_allocated(index),
        reserved=torch.cuda.memory_reserved(index),
        cap=cap,
    )


def room_of(device: torch.device) -> Room | None:
    """As a program finds it, which knows of no test's cap."""
    return of_cuda(device.index) if device.type == "cuda" else of_other(device.type, device.index)


def of_other(kind: str, index: int) -> Room | None:
    """Of another accelerator, if it tells its memory as CUDA does."""
    module = torch.get_device_module(kind)
    try:
        free, total = module.mem_get_info(index)
        allocated, reserved = module.memory_allocated(index), module.memory_reserved(index)
    except (AttributeError, NotImplementedError, RuntimeError):
        return None  # transformers leaves such devices out for the same reasons
    return of_allocator(
        free=free, total=total, limit=_limit(module, index, total), allocated=allocated, reserved=reserved
    )


def _limit(module: object, index: int, total: int) -> int | None:
    asked = getattr(module, "get_per_process_memory_fraction", None)
    if asked is None:
        return None  # a torch whose limit cannot be read
    fraction = float(asked(index))
    return round(fraction * total) if fraction < 1 else None
