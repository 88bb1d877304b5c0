"""What can go wrong, as types: who catches what decides whether a test fails, errs, or the session stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_memleak.records.record import CheckResult


class MemleakError(Exception):
    """Base of everything this package raises on purpose."""


class BadInput(MemleakError, ValueError):
    """Something a user wrote cannot be read: a limit, a unit, a marker's argument, an option.

    The message quotes the bad text and says what is allowed; whoever knows *where* it stood (file and line, flag, ini)
    adds that with `located`.
    """

    def located(self, where: str) -> BadInput:
        return type(self)(f"{where}: {self}")


class Judged(MemleakError):
    """A promise did not hold, or could not be judged."""

    def __init__(self, message: str, results: Sequence[CheckResult] = ()) -> None:
        super().__init__(message)
        self.results = tuple(results)


class Inconclusive(Judged):
    """The check could not see what it was asked to judge. It is an error, never a pass."""


class Unavailable(MemleakError):
    """This machine lacks what a measurement needs (no torch, no card, no /proc); the message says what to do."""


class NotSimulated(MemleakError, NotImplementedError):
    """The program wants something of a card that the simulated one does not have; whatever comes of it says nothing."""


class BudgetExceeded(Judged, AssertionError):
    """A promise about memory broke. An AssertionError, so that code without pytest treats it as one."""
