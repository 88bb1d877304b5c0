"""A number that tells a tensor's bits from any others', computed where the tensor lies and in little memory.

Two tensors of one type and shape have the same number if and, but for one chance in 2**64, only if each bit is the
same; so NaN is compared by its bits as well, and -0.0 is not 0.0.
"""

from __future__ import annotations

import torch

from pytest_memleak.values.layout import pieces

# Those of splitmix64, as signed numbers: each word is mixed well, with its place, before all are added.
_STEP, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_NEXT = 0x5851F42D4C957F2D
_WORD = 1 << 64


def bits_of(tensor: torch.Tensor) -> str:
    """Of a strided tensor with memory, in hexadecimal digits."""
    tensor = tensor.resolve_conj().resolve_neg()
    number = tensor.numel() * tensor.element_size()
    size = max(1, _pieces_of(tensor.device) // tensor.element_size())
    mixer = _Mixer(-(-min(size, tensor.numel()) * tensor.element_size() // 8), tensor.device)
    for piece in pieces(tensor, size):
        number = (number * _NEXT + mixer.mixed(piece.view(torch.uint8))) % _WORD
    return f"{number:016x}"


def _pieces_of(device: torch.device) -> int:
    """Bytes at a time: what stays in a processor's cache, or what is worth to wait for a device."""
    return 256 << 10 if device.type == "cpu" else 16 << 20


class _Mixer:
    """Works in the same memory for all pieces of a tensor."""

    def __init__(self, room: int, device: torch.device) -> None:
        self._places = torch.arange(1, room + 1, dtype=torch.int64, device=device).mul_(_STEP)
        self._words = torch.empty(room, dtype=torch.int64, device=device)
        self._shifted = torch.empty(room, dtype=torch.int64, device=device)

    def mixed(self, raw: torch.Tensor) -> int:
        """Of so many bytes, eight in a word; the last word is filled up with zeros."""
        count = -(-len(raw) // 8)
        words, shifted = self._words[:count], self._shifted[:count]
        words[-1] = 0
        words.view(torch.uint8)[: len(raw)].copy_(raw)
        words.add_(self._places[:count])
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
            torch.bitwise_right_shift(words, shift, out=shifted)
            words.bitwise_xor_(shifted)
            if factor != 1:
                words.mul_(factor)
        return int(words.sum())
