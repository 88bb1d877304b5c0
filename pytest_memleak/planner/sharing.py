"""What blocks are given in a step, and who holds it for how long."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from pytest_memleak.planner.running.modes import id_of


@dataclass
class _Storage:
    bytes: int
    ref: weakref.ref[torch.UntypedStorage]
    blocks: list[int]
    """That are given it, in their order."""
    gone_at: int | None = None
    """The first mark at which it was not there any more."""

    @property
    def alive(self) -> bool:
        return self.ref() is not None


@dataclass
class Given:
    """A block's input is gone when the next one is called, unless the block has saved it.

    What all blocks share, and the first one's input, is held by the model's own code up to its end.
    """

    nobodys: frozenset[int] = frozenset()
    """Storages that are there before and afterwards: the batch's, weights."""
    require_grad: bool = False
    kept: dict[int, bool] = field(default_factory=dict)
    """By block: whether it has saved its input."""
    _inputs: dict[int, _Storage] = field(default_factory=dict)
    _shared: dict[int, _Storage] = field(default_factory=dict)
    _first: int = 0

    def take(self, block: int, tensor: torch.Tensor, others: Iterable[torch.Tensor]) -> None:
        self._inputs[block] = _storage(tensor)
        if block == 0:
            self.require_grad, self._first = tensor.requires_grad, id_of(tensor)
            others = (tensor, *others)
        for other in others:
            if other.device == tensor.device and id_of(other) not in self.nobodys:
                self._shared.setdefault(id_of(other), _storage(other)).blocks.append(block)

    def bytes_of(self, block: int) -> int:
        """Of its input."""
        return self._inputs[block].bytes if block in self._inputs else 0

    def look(self, block: int) -> None:
        """Now it would be gone."""
        if block in self._inputs:
            self.kept.setdefault(block, self._inputs[block].alive)

    def passed(self, mark: int) -> None:
        for storage in self._shared.values():
            if storage.gone_at is None and not storage.alive:
                storage.gone_at = mark

    def shared_at(self, mark: int) -> int:
        """Bytes of what is shared, the first input among it: it was all made before the first block was called."""
        return sum(one.bytes for one in self._shared.values() if one.gone_at is None or one.gone_at > mark)

    def shared(self) -> dict[int, int]:
        """Bytes of what is there now, by the first block that is given them."""
        return _by_first(self._shared.values())

    def held(self, block: int) -> dict[int, int]:
        """The same of what this one is given, without the first input."""
        others = [one for key, one in self._shared.items() if key != self._first]
        return _by_first(one for one in others if block in one.blocks)


def _by_first(storages: Iterable[_Storage]) -> dict[int, int]:
    found: dict[int, int] = {}
    for one in storages:
        if one.alive:
            found[one.blocks[0]] = found.get(one.blocks[0], 0) + one.bytes
    return found


def _storage(tensor: torch.Tensor) -> _Storage:
    storage = tensor.untyped_storage()
    return _Storage(storage.nbytes(), weakref.ref(storage), [])
