"""Looks come one at a time, and nobody waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_memleak.events import recording
from pytest_memleak.events.recording import NEVER, Alarm, Reached


class Look:
    """Of another thread: it goes on until it may end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self, level: int, asked: int, refused: bool) -> int:
        self.begun.set()
        self.may_end.wait()
        return level + 1


def noting(told: list[int]) -> Reached:
    def reached(level: int, asked: int, refused: bool) -> int:
        told.append(level)
        return NEVER

    return reached


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def look(pool: ThreadPoolExecutor) -> Iterator[Look]:
    """Under way."""
    found = Look()
    ringing = pool.submit(Alarm(found, 0).ring, 100, 0, False)
    found.begun.wait()
    yield found
    found.may_end.set()
    assert ringing.result() == 101


def test_a_refusal_waits_until_another_look_is_over(pool: ThreadPoolExecutor, look: Look) -> None:
    told: list[tuple[int, int, bool]] = []

    def reached(level: int, asked: int, refused: bool) -> int:
        assert look.may_end.is_set()
        told.append((level, asked, refused))
        return level

    refused = pool.submit(Alarm(reached, NEVER).ring, 200, 50, True)
    look.may_end.set()
    assert refused.result() == 200
    assert told == [(200, 50, True)]


def test_a_level_does_not_wait(look: Look) -> None:
    """Nor does it on another device: two looks at once would hide objects from each other."""
    told: list[int] = []
    alarm = Alarm(noting(told), 7)
    assert alarm.ring(200, 50, False) == 7
    assert told == []


def test_a_refusal_does_not_wait_for_ever(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_PATIENCE", 0.01)
    told: list[int] = []
    alarm = Alarm(noting(told), 7)
    assert alarm.ring(200, 50, True) == 7
    assert told == []


def test_what_a_look_allocates_itself_is_not_looked_at() -> None:
    inner: list[int] = []

    def reached(level: int, asked: int, refused: bool) -> int:
        assert other.ring(300, 1, True) == 7
        return level + 1

    other = Alarm(noting(inner), 7)
    assert Alarm(reached, 0).ring(100, 0, False) == 101
    assert inner == []


def test_a_look_that_fails_is_the_last_one_and_lets_go_of_its_turn() -> None:
    def fail(level: int, asked: int, refused: bool) -> int:
        raise KeyboardInterrupt

    assert Alarm(fail, 0).ring(100, 0, False) == NEVER
    assert Alarm(lambda level, asked, refused: 5, 0).ring(100, 0, False) == 5
