"""Copies to, from and on the simulated card, with the temporaries that a card needs for them."""

from __future__ import annotations

from typing import Any

import torch

from pytest_memleak.cards.simulated.values import MOST_ELEMENTS, PLACEHOLDER, Unknowns, Values


class Copies:
    def __init__(self, values: Values, unknowns: Unknowns) -> None:
        self._values = values
        self._unknowns = unknowns

    def copy_(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            if to.shape != source.shape:
                source = source.expand(to.shape)
            if not to.numel():
                return to
            if to.device.type == "cpu":
                self._from_card(to, source, non_blocking)
            elif source.device.type == "cpu":
                self._to_card(to, source, non_blocking)
            else:
                self._on_card(to, source)
            return to

    def scalar(self, tensor: torch.Tensor) -> Any:
        """`item`, and whatever asks a tensor for a number or a truth."""
        with torch._C.DisableTorchFunctionSubclass():
            if self._values.knows(tensor):
                return self._values.of(tensor).item()
            return self._unknowns.read(tensor)

    def _to_card(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        small = source.numel() <= MOST_ELEMENTS
        if source.dtype != to.dtype and not non_blocking and small:
            source = source.to(to.dtype)  # the CPU converts, and the card gets what fits
        if not to.is_contiguous():
            staged = torch.empty_like(to, dtype=to.dtype, memory_format=torch.contiguous_format)
            del staged
        if small:
            self._values.of(to).copy_(source)
        self._values.written(to, known=small)

    def _from_card(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool) -> None:
        if not source.is_contiguous():
            staged = torch.empty_like(source, memory_format=torch.contiguous_format)
            del staged
        if self._values.knows(source):
            to.copy_(self._values.of(source))
        elif to.dtype.is_floating_point or to.dtype.is_complex:
            if to.numel() <= MOST_ELEMENTS:
                to.fill_(PLACEHOLDER)
            self._unknowns.read(source)
        else:
            to.zero_()
            self._unknowns.decided(source)

    def _on_card(self, to: torch.Tensor, source: torch.Tensor) -> None:
        known = self._values.knows(source) and source.numel() <= MOST_ELEMENTS
        if to.device != source.device and not (
            to.is_contiguous() and source.is_contiguous() and to.dtype == source.dtype
        ):
            # Between cards only whole blocks of one type travel.
            staged = torch.empty(source.shape, dtype=to.dtype, device=source.device)
            del staged
        if known:
            self._values.of(to).copy_(self._values.of(source))
        self._values.written(to, known=known)
