"""Which tensors of the simulated card hold the values they would have, and what a program is given in place of others.

What is small and comes from known values is computed for real: token ids, masks, positions, shapes, whole models if they
are tiny. Everything else has a size and no content. A program that reads it gets a placeholder; one that decides
something by it makes the run inconclusive, and the line is named.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import torch

from pytest_memleak.upstream.where import caller, shown

MOST_ELEMENTS = 2**18
"""Of all tensors of an operation together; beyond, its values are not computed."""

PLACEHOLDER = 1.0
"""What a program reads where a floating-point number is not known: a loss to log, a norm."""


@dataclass
class Unknowns:
    """What a program read without there being a value."""

    placeholders: dict[str, int] = field(default_factory=dict)
    """By line: numbers that were read, to be logged for instance."""
    decisions: dict[str, int] = field(default_factory=dict)
    """By line: values that the program went by."""

    def read(self, what: torch.Tensor) -> float | int | bool:
        place = shown(caller(past="__bool__"))
        if what.dtype.is_floating_point:
            self.placeholders[place] = self.placeholders.get(place, 0) + 1
            return PLACEHOLDER
        self.decided(what)
        return False if what.dtype == torch.bool else 0

    def decided(self, what: torch.Tensor) -> None:
        place = f"{shown(caller(past='__bool__'))} ({str(what.dtype).removeprefix('torch.')} {list(what.shape)})"
        self.decisions[place] = self.decisions.get(place, 0) + 1

    def doubt(self) -> str | None:
        """Why the run cannot be believed, or None."""
        if not self.decisions:
            return None
        first, *more = self.decisions
        rest = f" and {len(more)} more" if more else ""
        return f"the program went by a value that the simulated card does not have, at {first}{rest}"


class Values:
    """The storages whose values are known, by their address."""

    def __init__(self, possible: bool) -> None:
        self._possible = possible
        self._known: set[int] = set()
        self._random = torch.Generator().manual_seed(0).get_state()
        self._lock = threading.Lock()

    def knows(self, tensor: torch.Tensor) -> bool:
        storage = tensor.untyped_storage()
        return storage.data_ptr() in self._known or not storage.nbytes()

    def written(self, tensor: torch.Tensor, known: bool) -> None:
        """Its elements have values now that are known, or no longer are."""
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if not known:
            self._known.discard(address)
        elif self._possible and tensor.numel() * tensor.itemsize == storage.nbytes() and not _overlaps(tensor):
            self._known.add(address)

    def forget(self, address: int) -> None:
        self._known.discard(address)

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values as a tensor of the CPU, on the same memory: what is written there is written."""
        found: torch.Tensor = torch.ops.memleak.values(tensor)
        return found

    def at_random(self) -> _OwnRandomness:
        """Random numbers that leave the program's own alone, as a card's generator does."""
        return _OwnRandomness(self)


class _OwnRandomness:
    def __init__(self, values: Values) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._values._lock.acquire()
        self._theirs = torch.get_rng_state()
        torch.set_rng_state(self._values._random)

    def __exit__(self, *error: object) -> None:
        self._values._random = torch.get_rng_state()
        torch.set_rng_state(self._theirs)
        self._values._lock.release()


def _overlaps(tensor: torch.Tensor) -> bool:
    return not tensor.is_contiguous() and 0 in tensor.stride()
