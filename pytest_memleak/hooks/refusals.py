"""Out-of-memory errors that a test expects: `pytest.raises(torch.OutOfMemoryError)` is an assertion, `except` is not.

A card that refused an allocation has refused the test's own promise as well, unless the test says it wants that.
"""

from __future__ import annotations

import contextlib
import unittest
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.card import Card

_EXPECTING = (
    type(pytest.raises(ValueError)),
    type(unittest.TestCase().assertRaises(ValueError)),  # noqa: PT027 – its context is what is looked for
)


class ExpectedRefusals:
    """Counts, while open, the refusals inside blocks that expected an out-of-memory and got it."""

    def __init__(self, card: Card) -> None:
        self.count = 0
        self._gauges = card.gauges()
        self._undo = contextlib.ExitStack()
        self._entered: list[tuple[object, int]] = []

    @property
    def expecting(self) -> bool:
        """Whether the program is inside a block that expects something."""
        return bool(self._entered)

    def begin(self) -> None:
        for context in _EXPECTING:
            self._undo.enter_context(Patch(context, "__enter__", self._entering))
            self._undo.enter_context(Patch(context, "__exit__", self._leaving))

    def end(self) -> None:
        self._undo.close()

    def _refusals(self) -> int:
        return sum(gauge.gauge.refusals() for gauge in self._gauges)

    def _entering(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def enter(context: Any) -> Any:
            self._entered.append((context, self._refusals()))
            return real(context)

        return enter

    def _leaving(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def leave(context: Any, kind: Any, *rest: Any) -> Any:
            __tracebackhide__ = True
            before = next((count for entered, count in reversed(self._entered) if entered is context), None)
            self._entered = [pair for pair in self._entered if pair[0] is not context]
            suppressed = real(context, kind, *rest)
            if suppressed and before is not None and kind is not None and issubclass(kind, torch.OutOfMemoryError):
                self.count += self._refusals() - before
            return suppressed

        return leave
