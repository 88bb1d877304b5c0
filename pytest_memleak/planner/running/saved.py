"""What a block saves for its backward pass, kept on the host meanwhile."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pytest_memleak.planner.running.transfers import Transfers, bytes_of


class _Kept:
    """One storage. Tensors that share one on the card share it again when it is back."""

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host
        self.on_card: torch.Tensor | None = None
        self.arrives: Any = None
        self.is_another = False
        """It was written to after it had been saved."""


@dataclass(frozen=True)
class _Place:
    """A tensor of a storage, as autograd holds it."""

    kept: _Kept
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    conjugated: bool
    negated: bool
    """Torch does these two only when somebody looks: what is in the storage has them not."""


class SavedOnHost:
    """One forward pass of one block.

    `ahead`: copies run beside the work, those to the host from `leave` on; then `settle` is to be called before memory
    counts as free, and `bring_back` before the block goes backward. Otherwise tensors leave and return at once.
    """

    def __init__(self, transfers: Transfers, stays: Callable[[torch.Tensor], bool], ahead: bool) -> None:
        self._transfers = transfers
        self._stays = stays
        self._ahead = ahead
        # What is saved twice is copied once; but a storage that was written to in between is another one.
        self._seen: dict[tuple[int, int], tuple[weakref.ref[torch.UntypedStorage], weakref.ref[_Kept]]] = {}
        self._leaving: list[tuple[_Kept, torch.Tensor, int]] = []
        """With the tensor, and what its version was."""
        self._all: list[weakref.ref[_Kept]] = []

    def hooks(self) -> torch.autograd.graph.saved_tensors_hooks:
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def leave(self) -> None:
        """All at once, when the block is through: to change streams for each tensor takes longer than many a copy."""
        if self._leaving:
            with self._transfers.to_host.copying():
                for kept, tensor, version in self._leaving:
                    assert kept.on_card is not None
                    kept.is_another = tensor._version != version
                    kept.host.copy_(kept.on_card, non_blocking=True)

    def settle(self) -> None:
        """What has left the card may be overwritten from now on."""
        if self._leaving:
            self._transfers.wait(self._transfers.to_host.mark())
        for kept, _, _ in self._leaving:
            kept.on_card = None
        self._leaving.clear()

    def bring_back(self) -> None:
        if not self._ahead:
            return
        found = [kept for one in self._all if (kept := one()) is not None and kept.on_card is None]
        for kept in found:  # memory of the work's own, and so not within the lane
            kept.on_card = torch.empty_like(kept.host, device=self._transfers.device)
        with self._transfers.to_card.copying():
            for kept in found:
                assert kept.on_card is not None
                kept.on_card.copy_(kept.host, non_blocking=True)
                kept.arrives = self._transfers.to_card.mark()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor | _Place:
        if tensor.device != self._transfers.device or tensor.untyped_storage().nbytes() == 0 or self._stays(tensor):
            return tensor
        kept = self._known(tensor)
        if kept is None:
            kept = self._keep(tensor)
        return _Place(
            kept,
            tensor.dtype,
            int(tensor.storage_offset()),
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def _unpack(self, place: torch.Tensor | _Place) -> torch.Tensor:
        if isinstance(place, torch.Tensor):
            return place
        kept = place.kept
        if kept.is_another:
            raise RuntimeError(
                "a tensor that is needed for the way back was written to in place after it had been saved: without a "
                "plan torch refuses that, too"
            )
        if kept.on_card is None:
            kept.on_card = torch.empty_like(kept.host, device=self._transfers.device)
            kept.on_card.copy_(kept.host, non_blocking=True)
        self._transfers.wait(kept.arrives)
        kept.arrives = None
        empty = torch.empty(0, dtype=place.dtype, device=kept.on_card.device)
        tensor = empty.set_(kept.on_card.untyped_storage(), place.offset, place.shape, place.stride)
        if place.conjugated:
            tensor = tensor.conj()
        return torch._neg_view(tensor) if place.negated else tensor

    def _known(self, tensor: torch.Tensor) -> _Kept | None:
        storage = tensor.untyped_storage()
        found = self._seen.get((storage._cdata, tensor._version))
        if found is None or found[0]() is None:
            return None
        return found[1]()

    def _keep(self, tensor: torch.Tensor) -> _Kept:
        storage, whole = tensor.untyped_storage(), bytes_of(tensor)
        kept = _Kept(self._transfers.host_memory(whole.nbytes))
        if self._ahead:
            kept.on_card = whole
            self._leaving.append((kept, tensor.detach(), tensor._version))
        else:
            kept.host.copy_(whole, non_blocking=True)
        self._seen[storage._cdata, tensor._version] = weakref.ref(storage), weakref.ref(kept)
        self._all.append(weakref.ref(kept))
        return kept
