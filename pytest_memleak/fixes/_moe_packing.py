"""One expert tensor in 4 bits, made a piece at a time: what is packed is all that there ever is of it on the card.

The result is that of `bitsandbytes.nn.parametrize.replace_parameter_4bit` on the whole tensor, bit by bit: blocks are
quantized each by itself, and what nested quantization makes of the blocks' maxima is made of all of them, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pytest_memleak.fixes._moe_settings import Settings, require_bitsandbytes

NESTED_BLOCKSIZE = 256
"""bitsandbytes' own, of the maxima."""
_PER_BYTE = 2


@functools.cache
def table(quant_type: str) -> torch.Tensor:
    """The 16 values that there are. bitsandbytes makes it in torch's default type, which transformers sets for the
    whole process while it builds a model: made once, before the first load, it is no other for loads in threads.
    """
    made: torch.Tensor = import_module("bitsandbytes.functional").get_4bit_type(quant_type, device="cpu")
    return made


class Packing:
    """A tensor of that shape, as far as its pieces have come."""

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, device: torch.device, settings: Settings, *, is_last: bool = False
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.settings = settings
        self._device = device
        self._done = 0
        # To nest the maxima all of them have to be there. As long as other tensors of experts are still to come, that
        # takes less than those will. The last one makes room itself: it comes to the card when the maxima are gone.
        place = torch.device("cpu") if is_last else device
        self._packed = torch.empty(shape.numel() // _PER_BYTE, dtype=torch.uint8, device=place)
        # Maxima take a 32nd of the tensor, which is several experts where a layer has hundreds of them. They wait on
        # the host until there is no piece on the card any more.
        self._maxima = torch.empty(shape.numel() // settings.blocksize, dtype=torch.float32)

    @torch.no_grad()
    def add(self, piece: torch.Tensor) -> None:
        """What comes next in the order of the tensor's values. It ends where a block ends."""
        functional = import_module("bitsandbytes.functional")
        count, blocksize = piece.numel(), self.settings.blocksize
        if count % blocksize or self._done + count > self.shape.numel() or piece.dtype != self.dtype:
            raise AssertionError(f"{tuple(piece.shape)} of {piece.dtype} after {self._done} of {tuple(self.shape)}")
        packed, state = functional.quantize_4bit(
            piece.reshape(-1),
            blocksize=blocksize,
            compress_statistics=False,
            quant_type=self.settings.quant_type,
        )
        end = self._done + count
        self._packed[self._done // _PER_BYTE : end // _PER_BYTE].copy_(packed.view(-1))
        self._maxima[self._done // blocksize : end // blocksize].copy_(state.absmax.view(-1))
        self._done = end

    @torch.no_grad()
    def finish(self) -> Packed:
        functional = import_module("bitsandbytes.functional")
        if self._done != self.shape.numel():
            raise AssertionError(f"{self._done} of {self.shape.numel()} values came")
        device = self._device
        maxima = self._maxima.to(device)
        del self._maxima
        offset = state2 = None
        if self.settings.nested:
            offset = maxima.mean()
            maxima -= offset
            maxima, state2 = functional.quantize_blockwise(maxima, blocksize=NESTED_BLOCKSIZE)
        data = self._packed.to(device).view(-1, 1)
        state = functional.QuantState(
            absmax=maxima,
            shape=self.shape,
            dtype=self.dtype,
            blocksize=self.settings.blocksize,
            code=table(self.settings.quant_type).to(device, copy=True),
            quant_type=self.settings.quant_type,
            offset=offset,
            state2=state2,
        )
        return Packed(data, state)


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
        parametrize = require_bitsandbytes()
        small = torch.zeros(self.state.blocksize, dtype=self.state.dtype, device=self.data.device)
        module.register_parameter(leaf, nn.Parameter(small, requires_grad=False))
        parametrize.replace_parameter_4bit(
            module, leaf, quant_type=self.state.quant_type, blocksize=self.state.blocksize
        )
        parametrized: Any = module.get_submodule(f"parametrizations.{leaf}")
        parametrized.original = nn.Parameter(self.data, requires_grad=False)
        parametrized[0].quant_state = self.state


def packed(pieces: Iterable[torch.Tensor], shape: torch.Size, settings: Settings, *, is_last: bool = False) -> Packed:
    """Of pieces that come one after the other, none of which is needed once the next is asked for. `is_last`: of the
    tensors of a load, whatever else may come to the card after them.
    """
    packing: Packing | None = None
    for piece in pieces:
        if packing is None:
            packing = Packing(shape, piece.dtype, piece.device, settings, is_last=is_last)
        packing.add(piece)
        del piece  # or it would be there while the next one is made
    if packing is None:
        raise AssertionError("no piece came")
    return packing.finish()
