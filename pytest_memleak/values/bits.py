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
_BLOCK = {"cpu": 1 << 20}
"""Bytes that are mixed at a time: what a core's cache holds."""
_LARGE_BLOCK = 1 << 24
"""Of a GPU, which starts a dozen kernels for each."""


def bits_of(tensor: torch.Tensor) -> str:
    """Of a strided tensor with memory, in hexadecimal digits."""
    tensor = tensor.resolve_conj().resolve_neg()
    block = _BLOCK.get(tensor.device.type, _LARGE_BLOCK)
    mixer = _Mixer(tensor.numel() * tensor.element_size(), block, tensor.device)
    for piece in pieces(tensor, block // tensor.element_size()):
        mixer.add(piece.view(torch.uint8))
    return mixer.digits()


class _Mixer:
    """Works in the same memory all the time, and waits for its device once. A piece of a tensor may be of any length:
    that is a matter of layout, and so the number does not depend on it, nor on the length of a block.
    """

    def __init__(self, count: int, block: int, device: torch.device) -> None:
        self._count = count
        self._block = block
        room = min(block, count) // 8 + 1
        self._places = torch.arange(1, room + 1, dtype=torch.int64, device=device).mul_(_STEP)
        self._words = torch.empty(room, dtype=torch.int64, device=device)
        self._shifted = torch.empty(room, dtype=torch.int64, device=device)
        self._total = torch.zeros((), dtype=torch.int64, device=device)
        self._bytes = self._words.view(torch.uint8)
        self._filled = 0

    def add(self, raw: torch.Tensor) -> None:
        while len(raw):
            now, raw = raw[: self._block - self._filled], raw[self._block - self._filled :]
            self._bytes[self._filled : self._filled + len(now)].copy_(now)
            self._filled += len(now)
            if self._filled == self._block:
                self._mix()

    def digits(self) -> str:
        if self._filled:
            self._mix()
        return f"{(self._count * _NEXT + int(self._total)) % _WORD:016x}"

    def _mix(self) -> None:
        """Eight bytes are a word; the last one is filled up with zeros."""
        count = -(-self._filled // 8)
        self._bytes[self._filled : 8 * count] = 0
        words, shifted = self._words[:count], self._shifted[:count]
        words.add_(self._places[:count])
        for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
            torch.bitwise_right_shift(words, shift, out=shifted)
            shifted.bitwise_and_((1 << (64 - shift)) - 1)  # signed words, without their sign
            words.bitwise_xor_(shifted)
            if factor != 1:
                words.mul_(factor)
        self._total += words.sum()
        self._places += _signed(self._block // 8 * _STEP)
        self._filled = 0


def _signed(number: int) -> int:
    """As 64 bits have it."""
    return (number + _WORD // 2) % _WORD - _WORD // 2
