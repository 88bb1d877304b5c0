"""A tensor's values piece by piece, in little memory, however it is laid out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

PIECE = 1 << 20
"""Values that are looked at together where a tensor cannot be looked at as a whole."""


def without_repeats(tensor: torch.Tensor) -> torch.Tensor:
    """An expanded dimension says the same over and over: once is enough."""
    for dim, (length, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if length > 1 and stride == 0:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor | None:
    """The same values in the order of memory, where they are next to each other there: transposed, channels last."""
    if tensor.is_contiguous():
        return tensor
    strides = tensor.stride()
    ordered = tensor.permute(sorted(range(tensor.dim()), key=lambda dim: -strides[dim]))
    return ordered if ordered.is_contiguous() else None


def pieces(tensor: torch.Tensor, size: int = PIECE) -> Iterator[torch.Tensor]:
    """One-dimensional, in the order of the indices, of `size` values or less: views where possible, else copies."""
    if tensor.numel() == 0:
        return
    if tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), size)
        return
    rows = size // tensor[0].numel()
    if rows:
        for some in torch.split(tensor, rows):
            yield some.reshape(-1).contiguous()
        return
    for row in tensor:
        yield from pieces(row, size)


def index_at(place: int, shape: Sequence[int]) -> tuple[int, ...]:
    """The index of the value that so many others come before."""
    index: list[int] = []
    for length in reversed(shape):
        place, rest = divmod(place, length)
        index.append(rest)
    return tuple(reversed(index))
