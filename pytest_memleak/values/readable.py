"""Values as `torch.aminmax` takes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pytest_memleak.values.inside import simulated
from pytest_memleak.values.layout import in_memory_order, pieces

# Of the others float8 is cast piece by piece, and float4 has no NaN.
DIRECTLY = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def as_numbers(values: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs; what a simulated card knows is little, and is read on the CPU."""
    if simulated() and values.device.type != "cpu":
        values = values.cpu()
    if not values.is_complex():
        return values
    # A conjugate has its NaN in the same places.
    return torch.view_as_real(values.conj() if values.is_conj() else values)


def readable(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """As `torch.aminmax` takes it, and without a copy of the whole."""
    ordered = in_memory_order(values)
    if ordered is not None and values.dtype in DIRECTLY:
        yield ordered
        return
    for piece in pieces(values if ordered is None else ordered):
        yield piece if piece.dtype in DIRECTLY else piece.float()
