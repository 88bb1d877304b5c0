"""One expert tensor in 4 bits, made a piece at a time: what is packed is all that there ever is of it on the card.

The result is that of `bitsandbytes.nn.parametrize.replace_parameter_4bit` on the whole tensor, bit by bit: blocks are
quantized each by itself, and what nested quantization makes of the blocks' maxima is made of all of them, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pytest_memleak.fixes._moe_settings import Settings

NESTED_BLOCKSIZE = 256
"""bitsandbytes' own, of the maxima."""
_PER_BYTE = 2
_MAXIMUM = torch.float32.itemsize
_ALIGNED = 512
"""Bytes: as torch places memory of its own. A sum may depend on where its values begin."""


@functools.cache
def table(quant_type: str) -> torch.Tensor:
    """The 16 values that there are. bitsandbytes makes it in torch's default type, which transformers sets for the
    whole process while it builds a model: made once, before the first load, it is no other for loads in threads.
    """
    made: torch.Tensor = import_module("bitsandbytes.functional").get_4bit_type(quant_type, device="cpu")
    return made


def _four_bit_operation() -> Callable[[torch.Tensor, int, str, torch.dtype], tuple[torch.Tensor, torch.Tensor]]:
    """What `quantize_4bit` calls, too. Around it that one makes a table of the 16 values on the card each time, and
    waits for it: of thousands of experts that is most of a load's time.
    """
    import_module("bitsandbytes")
    operation: Any = torch.ops.bitsandbytes.quantize_4bit.default
    found: Callable[[torch.Tensor, int, str, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = operation
    return found


class Packing:
    """A tensor of that shape, as far as its pieces have come."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, device: torch.device, settings: Settings) -> None:
        self.shape = shape
        self.dtype = dtype
        self.settings = settings
        self._done = 0
        self._quantize = _four_bit_operation()
        blocks, packed = shape.numel() // settings.blocksize, shape.numel() // _PER_BYTE
        self._packed = torch.empty(packed, dtype=torch.uint8, device=device)
        self._early = packed
        place = device
        if settings.nested:
            # To nest the maxima all of them have to be there, and they take a 32nd of the tensor: several experts,
            # where a layer has hundreds. They wait on the host, and at last come to where the last experts will lie,
            # which wait there meanwhile.
            self._early = max(0, (packed - _MAXIMUM * blocks) // _ALIGNED * _ALIGNED)
            place = torch.device("cpu")
        self._maxima = _waiting(blocks, torch.float32, place, device)
        self._late = _waiting(packed - self._early, torch.uint8, place, device)

    def add(self, piece: torch.Tensor) -> None:
        """What comes next in the order of the tensor's values. It ends where a block ends."""
        count, blocksize = piece.numel(), self.settings.blocksize
        if count % blocksize or self._done + count > self.shape.numel() or piece.dtype != self.dtype:
            raise AssertionError(f"{tuple(piece.shape)} of {piece.dtype} after {self._done} of {tuple(self.shape)}")
        packed, maxima = self._quantize(piece.reshape(-1), blocksize, self.settings.quant_type, torch.uint8)
        begin, self._done = self._done, self._done + count
        self._keep(packed.view(-1), begin // _PER_BYTE)
        self._maxima[begin // blocksize : self._done // blocksize].copy_(maxima.view(-1), non_blocking=True)

    def _keep(self, packed: torch.Tensor, begin: int) -> None:
        here = min(max(0, self._early - begin), len(packed))
        if here:
            self._packed[begin : begin + here].copy_(packed[:here])
        if here < len(packed):
            at = begin + here - self._early
            self._late[at : at + len(packed) - here].copy_(packed[here:], non_blocking=True)

    def finish(self) -> Packed:
        functional = import_module("bitsandbytes.functional")
        if self._done != self.shape.numel():
            raise AssertionError(f"{self._done} of {self.shape.numel()} values came")
        maxima, offset, state2 = self._maxima, None, None
        if self.settings.nested:
            place = self._packed[self._early :]
            maxima = place[: self._maxima.nbytes].view(torch.float32).copy_(self._maxima, non_blocking=True)
            offset = maxima.mean()
            maxima -= offset
            maxima, state2 = functional.quantize_blockwise(maxima, blocksize=NESTED_BLOCKSIZE)
            place.copy_(self._late, non_blocking=True)
        state = functional.QuantState(
            absmax=maxima,
            shape=self.shape,
            dtype=self.dtype,
            blocksize=self.settings.blocksize,
            code=table(self.settings.quant_type).to(self._packed.device, copy=True),
            quant_type=self.settings.quant_type,
            offset=offset,
            state2=state2,
        )
        return Packed(self._packed.view(-1, 1), state)


def _waiting(count: int, dtype: torch.dtype, place: torch.device, card: torch.device) -> torch.Tensor:
    """Memory of the host is pinned for a card, or each piece would have to wait until what it leaves has arrived."""
    pinned = place.type == "cpu" and card.type == "cuda"
    return torch.empty(count, dtype=dtype, device=place, pin_memory=pinned)


class Packed:
    """A tensor in 4 bits, and what undoes it."""

    def __init__(self, data: torch.Tensor, state: Any) -> None:
        self.data = data
        self.state = state

    @property
    def nbytes(self) -> int:
        nested = self.state.state2
        kept = [self.data, self.state.absmax, self.state.code, self.state.offset]
        kept += [nested.absmax, nested.code] if nested is not None else []
        return sum(one.nbytes for one in kept if one is not None)

    def put(self, module: nn.Module, leaf: str) -> None:
        """In place of the module's parameter, with all that bitsandbytes gives such a one: it does so to a small one
        first, since what exactly differs between releases.
        """
        parametrize = import_module("bitsandbytes.nn.parametrize")
        small = torch.zeros(self.state.blocksize, dtype=self.state.dtype, device=self.data.device)
        module.register_parameter(leaf, nn.Parameter(small, requires_grad=False))
        parametrize.replace_parameter_4bit(
            module, leaf, quant_type=self.state.quant_type, blocksize=self.state.blocksize
        )
        parametrized: Any = module.get_submodule(f"parametrizations.{leaf}")
        parametrized.original = nn.Parameter(self.data, requires_grad=False)
        parametrized[0].quant_state = self.state


@torch.no_grad()
def packed(pieces: Iterable[torch.Tensor], shape: torch.Size, settings: Settings) -> Packed:
    """Of pieces that come one after the other, none of which is needed once the next is asked for."""
    packing: Packing | None = None
    for piece in pieces:
        if packing is None:
            packing = Packing(shape, piece.dtype, piece.device, settings)
        packing.add(piece)
        del piece  # or it would be there while the next one is made
    if packing is None:
        raise AssertionError("no piece came")
    return packing.finish()
