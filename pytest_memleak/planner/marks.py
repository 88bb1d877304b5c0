"""A step cut into stretches: what was held at each mark, and the most between two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from pytest_memleak.planner.levels import Levels
from pytest_memleak.planner.profile import Stretch

START, FORWARD, BEHIND, BACKWARD, GRADIENT, INPUT, END = (
    "start",
    "forward",
    "behind",
    "backward",
    "gradient",
    "input",
    "end",
)


Clock = Callable[[], float]


@dataclass(frozen=True)
class Mark:
    what: str
    block: int
    level: int
    peak: int
    """Since the mark before."""
    gradient: int
    """Bytes of a weight's gradient that was whole at this mark."""
    seconds: float
    shared: int = 0
    """Bytes in the level that all blocks share: how long they stay is told apart from what the parts of a step take."""

    @property
    def own(self) -> int:
        return self.level - self.shared


@dataclass(frozen=True)
class Backward:
    """A block's way back, with what its gradients are of it."""

    stretch: Stretch
    with_gradients: int


class Marks:
    """Of one step, in the order in which they were made."""

    def __init__(
        self,
        levels: Levels,
        device: torch.device,
        passed: Callable[[int], None] = lambda mark: None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._levels = levels
        self._passed = passed
        self._waits = device.type == "cuda" and levels.how != "predicted"
        self._device = device
        self.clock = clock
        self._marks: list[Mark] = []

    def make(self, what: str, block: int = -1, gradient: int = 0) -> None:
        peak = self._levels.highest()
        if self._waits:
            torch.cuda.synchronize(self._device)
        self._passed(len(self._marks))
        self._marks.append(Mark(what, block, self._levels.now(), peak, gradient, self.clock()))

    def share(self, bytes_at: Callable[[int], int]) -> None:
        """What blocks share is known when all have been called: how much of it was there at each mark."""
        first = next((number for number, mark in enumerate(self._marks) if mark.what == FORWARD), 0)
        self._marks = [
            replace(mark, shared=bytes_at(number) if number >= first else 0) for number, mark in enumerate(self._marks)
        ]

    @property
    def base(self) -> int:
        return self._marks[0].level

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self._marks[-1].seconds - self._marks[0].seconds

    def stretch(self, what: str, block: int = -1) -> Stretch:
        """From this mark to the next one that is no gradient's. Nothing if it was never made: nothing happened then."""
        return self._between(self._marks_of(what, block))

    def backward(self, block: int) -> Backward:
        marks = self._marks_of(BACKWARD, block)
        whole = self._between(marks)
        peak = with_gradients = gone = 0
        for mark in marks[1:]:
            # What is shared counts as held until the way back is through.
            over = mark.peak - marks[0].level
            with_gradients = max(with_gradients, over)
            peak = max(peak, over - gone)
            gone += mark.gradient
        return Backward(Stretch(peak, whole.grown - gone, whole.seconds), with_gradients)

    def _marks_of(self, what: str, block: int) -> list[Mark]:
        marks = iter(self._marks)
        for mark in marks:
            if mark.what == what and block in (-1, mark.block):
                return [mark, *_up_to_the_next(marks)]
        return []

    @staticmethod
    def _between(marks: list[Mark]) -> Stretch:
        if len(marks) < 2:
            return Stretch(0, 0)
        first, last = marks[0], marks[-1]
        # What is shared may have gone before the peak, or have come after it.
        peak = max(mark.peak for mark in marks[1:]) - min(first.shared, last.shared) - first.own
        return Stretch(peak, last.own - first.own, last.seconds - first.seconds)


def _up_to_the_next(marks: Iterator[Mark]) -> Iterator[Mark]:
    for mark in marks:
        yield mark
        if mark.what != GRADIENT:
            return
