"""Copies between the card and the host, in the order of the work or beside it. A CPU has nothing beside its work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


class Lane:
    """Copies one way, beside the work: they come after what was asked for before, and do not hold up what is next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def copying(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> Any:
        """An event after the copies so far."""
        return None if self._stream is None else self._stream.record_event()


class Transfers:
    """In the order of the work itself, or beside it, with an event that the work waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # A link carries as much one way while it carries as much the other.
        self.to_card, self.to_host = Lane(device), Lane(device)

    def host_memory(self, bytes_: int) -> torch.Tensor:
        """Pinned for a card. Where the CPU stands in for one, memory that is not torch's, and so not on that card."""
        if self.device.type == "cuda":
            return torch.empty(bytes_, dtype=torch.uint8, pin_memory=True)
        import numpy

        return torch.from_numpy(numpy.empty(bytes_, numpy.uint8))

    def wait(self, event: Any) -> None:
        """What the work does from now on comes after it."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        """Until the host may read what was copied to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor's storage, whatever the tensor is of it."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))
