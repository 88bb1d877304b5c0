"""What a program is given where the simulated card has no value, and what becomes of the run then.

What is small and comes from known values is computed for real (values.cpp): token ids, masks, positions, whole models
if they are tiny. Everything else has a size and no content. A program that reads it gets a placeholder; one that
decides something by it makes the run inconclusive, and the line is named.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from enum import IntEnum

from pytest_memleak.errors import NotSimulated
from pytest_memleak.upstream.where import caller, shown

PLACEHOLDER = 1.0
"""What a program reads where a floating-point number is not known: a loss to log, a norm."""


class Asked(IntEnum):
    """What was asked for; as in values.h."""

    NUMBER = 0
    DECISION = 1
    OPERATION = 2
    ELSEWHERE = 3


class Unknowns:
    """What a program read without there being a value, by line."""

    def __init__(self) -> None:
        self.placeholders: Counter[str] = Counter()
        """Numbers that were read, to be logged for instance."""
        self.decisions: Counter[str] = Counter()
        """Values that the program went by."""
        self.operations: Counter[str] = Counter()
        """Operations that torch has no shape function for."""
        self.elsewhere: Counter[str] = Counter()
        """Tensors whose memory is another card's, and is not counted on this one."""
        self.refused: Counter[str] = Counter()
        """What of a card cannot be simulated, and was used."""

    def reset(self) -> None:
        for found in self._all():
            found.clear()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Until the end nothing was read yet; then it is as before."""
        before = [Counter(found) for found in self._all()]
        self.reset()
        try:
            yield
        finally:
            for found, earlier in zip(self._all(), before, strict=True):
                found.clear()
                found.update(earlier)

    def _all(self) -> tuple[Counter[str], ...]:
        return self.placeholders, self.decisions, self.operations, self.elsewhere, self.refused

    def refuse(self, sentence: str) -> NotSimulated:
        """The error to be raised where somebody uses what is not simulated; the run is inconclusive, come what may."""
        self.refused[f"{sentence}: used at {shown(caller())}"] += 1
        return NotSimulated(f"{sentence}: run this on a real card")

    def answer(self, asked: int, what: bytes) -> float:
        """The stand-in for a value; called from the native part."""
        place = f"{shown(caller(past='__bool__'))} ({what.decode(errors='replace')})"
        if asked == Asked.NUMBER:
            self.placeholders[place] += 1
            return PLACEHOLDER
        found = {Asked.DECISION: self.decisions, Asked.OPERATION: self.operations, Asked.ELSEWHERE: self.elsewhere}
        found[Asked(asked)][place] += 1
        return 0.0

    def doubt(self) -> str | None:
        """Why the run cannot be believed, or None."""
        if self.refused:
            return f"{_first(self.refused)}; run it on a real card"
        if self.operations:
            return f"the simulated card cannot run an operation: {_first(self.operations)}"
        if self.decisions:
            return f"the program went by a value that the simulated card does not have, at {_first(self.decisions)}"
        if self.elsewhere:
            return (
                "a tensor was used that lies on another simulated card, and is not counted on this one, at "
                f"{_first(self.elsewhere)}: make it in the program that is predicted"
            )
        return None


def _first(found: Counter[str]) -> str:
    first, *more = found
    return f"{first} and {len(more)} more" if more else first
