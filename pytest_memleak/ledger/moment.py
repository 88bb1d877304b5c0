"""A look at a device while a program allocates: who holds what, and which line asked for more."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.events import garbage
from pytest_memleak.events.places import Place, Places
from pytest_memleak.events.recording import Recording
from pytest_memleak.events.storages import device_of, tensors_among
from pytest_memleak.ledger.examples import Example, examples_of
from pytest_memleak.ledger.owners import explain

_OWNERS = 5


@dataclass(frozen=True)
class Moment:
    level: int
    asked: int
    refused: bool
    place: Place
    """Which line asked."""
    holders: tuple[str, ...]
    examples: Mapping[Place, Example]

    def lines(self) -> list[str]:
        by = f" (from {self.place.by})" if self.place.by else ""
        asked = f" had asked for {format_size(self.asked)}" if self.asked else " was running"
        refused = ", which were refused" if self.refused else ""
        then = "who held it then:" if self.holders else "no tensor was there yet"
        return [
            f"with {format_size(self.level)} allocated, {self.place.line}{by}{asked}{refused}; {then}",
            *(f"  {line}" for line in self.holders),
        ]


def look(
    recording: Recording, level: int, asked: int, refused: bool, roots: Mapping[str, object], seconds: float
) -> Moment:
    """Takes `seconds` at most, but for one walk over all objects. Nothing is kept alive."""
    places = Places()
    # What asks for nothing is a thread that watches the program.
    frame = None if asked else sys._current_frames().get(threading.main_thread().ident or 0)
    place = places[places.here(frame)]
    del frame
    with garbage.everything_in_sight():
        found = _tensors_of(recording)
        try:
            held = level if refused else level - asked  # what was asked for last is no tensor yet
            holders = explain(found, held, roots=roots, ignore=(found,), limit=_OWNERS, budget=seconds, running=True)
            examples = examples_of(recording, found, garbage.in_sight())
        finally:
            found.clear()
    return Moment(level, asked, refused, place, holders, examples)


def see(recording: Recording) -> Mapping[Place, Example]:
    """What still lives of what was recorded. Nothing is kept alive."""
    with garbage.everything_in_sight():
        found = _tensors_of(recording)
        try:
            return examples_of(recording, found, garbage.in_sight())
        finally:
            found.clear()


def _tensors_of(recording: Recording) -> list[torch.Tensor]:
    return [tensor for tensor in tensors_among(garbage.in_sight()) if device_of(tensor) == recording.device]
