"""The accelerators that a device map sends weights to, as transformers and accelerate write such maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

_NOWHERE = frozenset({"cpu", "disk", "meta"})


def as_accelerator(target: Any) -> torch.device | None:
    """``0``, ``"0"``, ``"cuda"``, ``"cuda:1"`` or a device, with its index; None for what is no accelerator."""
    if isinstance(target, int) or (isinstance(target, str) and target.isdigit()):
        target = f"{_kind()}:{int(target)}"
    if isinstance(target, str) and target in _NOWHERE:
        return None
    device = torch.device(target)
    if device.type in _NOWHERE:
        return None
    return device if device.index is not None else torch.device(device.type, _current(device.type))


def accelerators_of(device_map: Any) -> list[torch.device]:
    """Each once, in the order of the map. Maps from names to devices, and one device for everything."""
    targets = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    found = (as_accelerator(target) for target in targets)
    return list(dict.fromkeys(device for device in found if device is not None))


def _kind() -> str:
    """A number is a device of the accelerator that torch has; CUDA where it has none, as torch itself reads it."""
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return current.type if current is not None else "cuda"


def _current(kind: str) -> int:
    current = getattr(torch.get_device_module(kind), "current_device", None)
    return int(current()) if current is not None else 0
