"""What was found among the values of some tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from pytest_memleak.events.places import Place


@dataclass(frozen=True)
class Bad:
    """A tensor that holds what is no finite number."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    count: int
    """Of its values; a complex one is two."""
    nans: int
    infinities: int
    """0 in a buffer, where they are not looked for."""
    first: tuple[int, ...]
    """Where the first of them is."""
    shard: bool = False
    """All this is of the rank's own shard."""
    place: Place | None = None
    """Where its memory was allocated, if that was recorded."""


@dataclass(frozen=True)
class Largest:
    """The largest magnitude in a tensor."""

    name: str
    magnitude: float
    count: int
    dtype: torch.dtype


@dataclass
class Scan:
    """What was found among some tensors."""

    looked: Counter[str] = field(default_factory=Counter)
    """How many tensors of each kind were read."""
    bad: list[Bad] = field(default_factory=list)
    unmaterialized: list[str] = field(default_factory=list)
    """On the meta device: without any values yet."""
    unknown: list[str] = field(default_factory=list)
    """On a simulated card, or fake: nobody computed them."""
    unreadable: list[str] = field(default_factory=list)
    """In a layout whose values cannot be got at."""
    largest: list[Largest] = field(default_factory=list)
    """Of all gradients that are fine."""

    def add(self, other: Scan) -> None:
        """Of a step among many: how many tensors were looked at is told of the largest one."""
        self.looked |= other.looked
        self.bad += [one for one in other.bad if one not in self.bad]
        for mine, more in (
            (self.unmaterialized, other.unmaterialized),
            (self.unknown, other.unknown),
            (self.unreadable, other.unreadable),
        ):
            mine += [name for name in more if name not in mine]
