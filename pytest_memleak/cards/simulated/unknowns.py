"""What a program is given where the simulated card has no value, and what becomes of the run then.

What is small and comes from known values is computed for real (native/values.cpp): token ids, masks, positions, whole
models if they are tiny. Everything else has a size and no content. A program that reads it gets a placeholder; one that
decides something by it makes the run inconclusive, and the line is named.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TypeVar

from pytest_memleak.errors import NotSimulated
from pytest_memleak.upstream.where import caller, shown
from pytest_memleak.wording import LET_GO, plural

PLACEHOLDER = 1.0
"""What a program reads where a floating-point number is not known: a loss to log, a norm."""

Read = TypeVar("Read")


class Asked(IntEnum):
    """What was asked for; as in native/values.h."""

    NUMBER = 0
    DECISION = 1
    OPERATION = 2
    ELSEWHERE = 3
    MARGIN = 4


class _Reading(threading.local):
    """What this thread is reading by Python at the moment."""

    as_decision = False
    made_up = False


class Unknowns:
    """What a program read without there being a value, by line."""

    def __init__(self) -> None:
        self.placeholders: Counter[str] = Counter()
        """Numbers that were read, to be logged for instance."""
        self.let_go: Counter[str] = Counter()
        """Of those the ones that became ordinary numbers: what is done with them is not seen."""
        self.decisions: Counter[str] = Counter()
        """Values that the program went by."""
        self.operations: Counter[str] = Counter()
        """Operations that torch has no shape function for."""
        self.elsewhere: Counter[str] = Counter()
        """Tensors whose memory is another card's, and is not counted on this one."""
        self.refused: Counter[str] = Counter()
        """What of a card cannot be simulated, and was used."""
        self._reading = _Reading()

    def counters(self) -> tuple[Counter[str], ...]:
        return self.placeholders, self.let_go, self.decisions, self.operations, self.elsewhere, self.refused

    def reset(self) -> None:
        for found in self.counters():
            found.clear()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Until the end nothing was read yet; then it is as before."""
        before = [Counter(found) for found in self.counters()]
        self.reset()
        try:
            yield
        finally:
            for found, earlier in zip(self.counters(), before, strict=True):
                found.clear()
                found.update(earlier)

    def refuse(self, sentence: str) -> NotSimulated:
        """The error to be raised where somebody uses what is not simulated; the run is inconclusive, come what may."""
        self.refused[f"{sentence}: used at {shown(caller())}"] += 1
        return NotSimulated(f"{sentence}: run this on a real card")

    def answer(self, asked: int, what: bytes) -> None:
        """A value was asked for; called from the native part."""
        place = _here(what.decode(errors="replace"))
        if asked == Asked.OPERATION:
            self.operations[place] += 1
        elif asked == Asked.ELSEWHERE:
            self.elsewhere[place] += 1
        elif asked == Asked.DECISION or self._reading.as_decision:
            self.decisions[place] += 1
        else:
            self._reading.made_up = True
            self.placeholders[place] += 1

    def read(self, ask: Callable[[], Read], *, as_decision: bool = False) -> tuple[Read, bool]:
        """What `ask` gets out of a tensor, and whether that is a placeholder. `as_decision`: it would be gone by."""
        reading = self._reading
        before = reading.as_decision, reading.made_up
        reading.as_decision, reading.made_up = as_decision, False
        try:
            return ask(), reading.made_up
        finally:
            reading.as_decision, reading.made_up = before

    def numbers(self, what: str, count: int) -> None:
        """So many of a tensor were read at once."""
        self.placeholders[_here(what)] += count

    def lost(self, what: str) -> None:
        """A number that was read goes where it cannot be told from others."""
        self.let_go[_here(what)] += 1

    def decided(self, what: str) -> None:
        self.decisions[_here(what)] += 1

    def remarks(self) -> Iterator[str]:
        """What was read and did not decide anything, as far as can be seen."""
        if self.placeholders:
            count = plural(self.placeholders.total(), "value that was", "values that were")
            lines = _lines(self.placeholders)
            yield f"{count} read and that nobody knows: placeholders ({PLACEHOLDER} each), at {lines}"
        if self.let_go:
            often = plural(self.let_go.total(), "time")
            yield (f"{LET_GO}, {often}: what is decided by such a number is not noticed, at {_lines(self.let_go)}")

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


def _lines(found: Counter[str]) -> str:
    first, *more = found
    return f"{first} and {plural(len(more), 'other line')}" if more else first


def _here(what: str) -> str:
    return f"{shown(caller(past='__bool__'))} ({what})"
