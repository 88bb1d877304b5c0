"""The simulated card for a file of tests that has a process to itself; see tests/alone.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pytest_memleak.cards.allocator.trace import Action
from tests.alone import simulated

Events = Callable[[Callable[[], Any]], list[int]]


@pytest.fixture
def simulation() -> Iterator[Any]:
    with simulated() as made:
        yield made


@pytest.fixture
def events(simulation: Any) -> Events:
    """The sizes that the caching allocator is asked for while something runs, and with a minus what it gets back."""

    def of(run: Callable[[], Any]) -> list[int]:
        found: list[int] = []
        signs = {Action.ALLOC: 1, Action.FREE: -1}

        def see(action: Action, address: int, size: int, stream: int) -> None:
            if action in signs:
                found.append(signs[action] * size)

        undo = simulation.allocator(None).observe(see)
        try:
            run()
        finally:
            undo()
        return found

    return of
