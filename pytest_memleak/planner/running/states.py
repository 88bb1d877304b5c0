"""Chunks of weights that are streamed: they lie on the host, and are on the card while a block needs them.

A weight's storage is emptied and filled again, so that what autograd has saved of it, views included, is right whenever
it is looked at.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.errors import BadInput
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.residency import Moves
from pytest_memleak.planner.running.transfers import Transfers, bytes_of


class LeftOnHost(UserWarning):
    """The card had no room for weights that were streamed."""


class _Streamed:
    """One weight: on the host always, on the card at times."""

    def __init__(self, weight: nn.Parameter, transfers: Transfers) -> None:
        self.weight = weight
        self._transfers = transfers
        storage = weight.untyped_storage()
        alone = weight.device == transfers.device and storage.nbytes() == weight.nbytes
        if not alone or not storage.resizable():
            # A storage of its own: emptying it would take others' memory away, and a mapped file cannot be emptied.
            weight.data = weight.data.to(transfers.device, copy=True)
        self._whole = bytes_of(weight.data)
        self._bytes = self._whole.nbytes
        self._host = transfers.host_memory(self._bytes)
        self._host.copy_(self._whole)
        self._stride, self._shape, self._dtype = weight.data.stride(), weight.shape, weight.dtype
        # For the optimizer that runs on the host.
        self.of_host = nn.Parameter(self._viewed(self._host), requires_grad=False)
        self._hook: RemovableHandle | None = None
        if weight.requires_grad:
            self.of_host.requires_grad_()
            self._hook = weight.register_post_accumulate_grad_hook(self._leave)
        self.drop()

    def drop(self) -> None:
        self._whole.untyped_storage().resize_(0)

    def make_room(self) -> None:
        self._whole.untyped_storage().resize_(self._bytes)

    def fill(self) -> None:
        self._whole.copy_(self._host, non_blocking=True)

    def restore(self) -> bool:
        """Whether it is on the card again. Where that is full it is the host's from now on, whole as well."""
        if self._hook is not None:
            self._hook.remove()
        try:
            self.make_room()
        except torch.OutOfMemoryError:
            self.weight.data = self.of_host.data
            return False
        self.fill()
        return True

    def _leave(self, weight: torch.Tensor) -> None:
        """Its gradient goes to the host as soon as it is whole."""
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if self.of_host.grad is None:
            host = self._viewed(self._transfers.host_memory(self._bytes))
            host.copy_(gradient, non_blocking=True)
            self.of_host.grad = host
        else:
            self.of_host.grad += gradient.to(self._host.device)

    def _viewed(self, host: torch.Tensor) -> torch.Tensor:
        return host.view(self._dtype).as_strided(self._shape, self._stride)


def refuse_emptied(model: nn.Module) -> None:
    """What another plan has taken off the card is not there to be copied, or to be computed with."""
    for name, weight in model.named_parameters():
        if weight.nbytes and not weight.untyped_storage().nbytes():
            raise BadInput(
                f"{name} has no memory, as under a plan: leave the with block of the training that streams it before "
                "another one begins, and before a step is profiled"
            )


class States:
    """The streamed chunks of one model."""

    def __init__(self, model: nn.Module, layout: Layout, n_persist: int, transfers: Transfers) -> None:
        self._transfers = transfers
        self._arriving: dict[int, Any] = {}
        self._chunks: dict[int, list[_Streamed]] = {}
        refuse_emptied(model)
        weights = dict(model.named_parameters())
        try:
            for number, chunk in enumerate(layout.chunks):
                if number >= n_persist:
                    streamed = self._chunks.setdefault(number, [])
                    for name in chunk.names:
                        streamed.append(_Streamed(weights[name], transfers))
        except BaseException:  # a host that is full, an interrupt: what has left the card by now is nowhere else
            self.restore()
            raise

    def move(self, moves: Moves) -> None:
        """Chunks that come for the running block are waited for; what comes ahead is, when its block runs."""
        for number in moves.dropped:
            self.wait_for([number])  # a pass that was given up: a copy into memory that is free may still be under way
            self._for_each(number, _Streamed.drop)
        for number in (*moves.fetched, *moves.ahead):
            # Asked for in the order of the work: what is free to it may still be in use elsewhere.
            self._for_each(number, _Streamed.make_room)
        for number in moves.fetched:
            self._for_each(number, _Streamed.fill)
        for number in moves.ahead:
            with self._transfers.to_card.copying():
                self._for_each(number, _Streamed.fill)
            self._arriving[number] = self._transfers.to_card.mark()

    def wait_for(self, chunks: Iterable[int]) -> None:
        for number in chunks:
            self._transfers.wait(self._arriving.pop(number, None))

    def trained_on_host(self) -> list[nn.Parameter]:
        return [one.of_host for chunk in self._chunks.values() for one in chunk if one.of_host.requires_grad]

    def restore(self) -> None:
        left = [one for chunk in self._chunks.values() for one in chunk if not one.restore()]
        if left:
            gigabytes = format_size(sum(one.weight.nbytes for one in left))
            warnings.warn(
                f"the card was full when training ended: {len(left)} weights ({gigabytes}) of the model are on the CPU "
                "now. Let go of what holds the card's memory, such as the error of an out-of-memory, and call "
                "model.to(device), or train by another plan, which takes them there",
                LeftOnHost,
                stacklevel=2,
            )

    def _for_each(self, number: int, do: Callable[[_Streamed], None]) -> None:
        for one in self._chunks[number]:
            do(one)
