"""Copies between the card and the host, in the order of the work or beside it. A CPU has nothing beside its work."""

from __future__ import annotations

import contextlib
from typing import Any

import torch


class Transfers:
    """Two ways to copy: in the order of the work itself, or beside it, with an event that the work waits for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._beside = None
        if device.type == "cuda":
            self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_memory(self, bytes_: int) -> torch.Tensor:
        """Pinned for a card. Where the CPU stands in for one, memory that is not torch's, and so not on that card."""
        if self._beside is not None:
            return torch.empty(bytes_, dtype=torch.uint8, pin_memory=True)
        import numpy

        return torch.from_numpy(numpy.empty(bytes_, numpy.uint8))

    @contextlib.contextmanager
    def beside(self) -> Any:
        """Copies in it come after the work that was asked for before, and do not hold up what is asked for next."""
        if self._beside is None:
            yield
            return
        self._beside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._beside):
            yield

    def mark(self) -> Any:
        """An event after the copies so far that run beside the work."""
        return None if self._beside is None else self._beside.record_event()

    def wait(self, event: Any) -> None:
        """What the work does from now on comes after it."""
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)

    def finish(self) -> None:
        """Until the host may read what was copied to it."""
        if self._beside is not None:
            torch.cuda.synchronize(self.device)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor's storage, whatever the tensor is of it."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage, 0, (storage.nbytes(),), (1,))
