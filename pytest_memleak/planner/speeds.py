"""How fast a card computes and copies: measured on a real one, presumed for a simulated one."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.running.transfers import Transfers


@dataclass(frozen=True)
class _Sheet:
    """By the maker's data sheet."""

    products: float
    """Operations a second of dense products in bfloat16 (float16 on a T4)."""
    link: float
    """Bytes a second that PCI Express carries each way."""


_SHEETS = {
    "RTX 3090": _Sheet(71e12, 25e9),
    "RTX 4090": _Sheet(165e12, 25e9),
    "T4": _Sheet(65e12, 12e9),
    "A10G": _Sheet(70e12, 25e9),
    "L4": _Sheet(121e12, 25e9),
    "A100": _Sheet(312e12, 25e9),
    "H100": _Sheet(989e12, 50e9),
    "H200": _Sheet(989e12, 50e9),
}
_LIKE_OTHERS = _SHEETS["H200"]
REACHED = 0.5
"""Of a data sheet's products, what training comes to: presumed, since nothing computes on a simulated card."""
HOST_OPTIMIZER = 2e9
"""Bytes of weights a second that AdamW goes through on a host of some cores: presumed."""
_COPIED = 64 * 1024**2
_WARM_UP = 2


def products_of(device: torch.device) -> float:
    """Operations a second that are presumed of a simulated card."""
    return REACHED * _sheet(device).products


def links_of(device: torch.device, how: str) -> Links:
    if device.type != "cuda":
        return Links(to_card=_memory_s(), to_host=_memory_s(), host_optimizer=HOST_OPTIMIZER)
    if how == "predicted":
        link = _sheet(device).link
        return Links(to_card=link, to_host=link, host_optimizer=HOST_OPTIMIZER)
    return Links(
        to_card=_measured(device, to_card=True),
        to_host=_measured(device, to_card=False),
        host_optimizer=HOST_OPTIMIZER,
    )


def _sheet(device: torch.device) -> _Sheet:
    name = torch.cuda.get_device_name(device)
    return next((sheet for part, sheet in _SHEETS.items() if part in name), _LIKE_OTHERS)


def _measured(device: torch.device, to_card: bool) -> float:
    host = Transfers(device).host_memory(_COPIED)
    card = torch.empty(_COPIED, dtype=torch.uint8, device=device)
    source, target = (host, card) if to_card else (card, host)
    for _ in range(_WARM_UP + 1):
        torch.cuda.synchronize(device)
        begun = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
    return _COPIED / (time.perf_counter() - begun)


def _memory_s() -> float:
    """Copies within the host's own memory."""
    source, target = (torch.zeros(_COPIED, dtype=torch.uint8) for _ in range(2))
    target.copy_(source)
    begun = time.perf_counter()
    target.copy_(source)
    return _COPIED / (time.perf_counter() - begun)
