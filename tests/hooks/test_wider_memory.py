"""What wider fixtures hold, with a gauge that is fed and fixtures that ask for each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_memleak.hooks.wider_memory import WiderMemory
from pytest_memleak.insides import noting_fixtures_asked


class Suite:
    """Fixtures by name: what each allocates itself, and which others its function asks for."""

    def __init__(self, **fixtures: tuple[int, str]) -> None:
        self.memory = WiderMemory()
        self.level = 1000  # held by others before
        self._fixtures = fixtures
        self._made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        if name not in self._made:
            own, asked = self._fixtures[name]
            request: Any = SimpleNamespace(_get_active_fixturedef=self.get)
            self._made[name] = definition = object.__new__(pytest.FixtureDef)
            with self.memory.set_up(definition, request, self._gauges()):
                for other in asked.split():
                    request._get_active_fixturedef(other)
                self.level += own
        return self._made[name]

    def held_by(self, *names: str) -> int:
        return self.memory.of([self.get(name) for name in names]).get("cuda:0", 0)

    def _gauges(self) -> Any:
        gauge = SimpleNamespace(device="cuda:0", now=lambda: {"allocated": self.level - 3}, unseen=lambda: 3)
        return [SimpleNamespace(gauge=gauge)]


FIXTURES = {"a": (1, ""), "b": (10, "a"), "c": (100, "b"), "d": (1000, "c a")}
WANTED = {"a": 1, "b": 11, "c": 111, "d": 1111}


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac", "cadb"])
def test_what_each_holds_does_not_depend_on_who_was_set_up_first(order: str) -> None:
    suite = Suite(**FIXTURES)
    for name in order:
        suite.get(name)
    assert {name: suite.held_by(name) for name in WANTED} == WANTED
    assert suite.held_by("a", "b", "c", "d") == 1111
    assert suite.held_by() == 0


def test_one_that_was_torn_down_holds_nothing() -> None:
    suite = Suite(**FIXTURES)
    suite.get("b")
    suite.memory.torn_down(suite.get("a"))
    assert suite.held_by("b") == 10


def test_one_that_failed_is_not_counted() -> None:
    suite = Suite(a=(1, "missing"), b=(2, ""))
    with contextlib.suppress(KeyError):
        suite.get("a")
    assert (suite.held_by("a"), suite.held_by("b")) == (0, 2)


def test_a_request_is_as_before_when_the_set_up_is_over() -> None:
    class Request:
        def _get_active_fixturedef(self, name: str) -> object:
            return name if name == "request" else definition

    definition: pytest.FixtureDef[Any] = object.__new__(pytest.FixtureDef)
    request = Request()

    def asking() -> Iterator[list[Any]]:
        with noting_fixtures_asked(request) as found:
            yield found

    running = asking()
    found = next(running)
    assert request._get_active_fixturedef("request") == "request"
    assert request._get_active_fixturedef("x") is definition
    assert found == [definition]
    assert next(running, None) is None
    assert vars(request) == {}
