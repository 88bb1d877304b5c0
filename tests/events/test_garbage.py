"""Freezing makes collections cheap and newcomers visible, and leaves the program's own choices alone."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from pytest_memleak.events import garbage


class Kept(Exception):
    """Unlike the built-in ones it can be referenced weakly."""


class Thing:
    other: Thing


def cycle() -> weakref.ref[Thing]:
    one = Thing()
    one.other = one
    return weakref.ref(one)


@pytest.fixture(autouse=True)
def nothing_frozen() -> Iterator[None]:
    def clean() -> None:
        garbage.thaw()
        gc.unfreeze()
        gc.enable()

    clean()
    yield
    clean()


def test_newcomers_are_what_came_after_settling() -> None:
    old = Thing()
    assert garbage.settle()
    new = Thing()
    found = [thing for thing in garbage.newcomers() if type(thing) is Thing]
    assert found == [new]
    assert garbage.settle()
    assert not [thing for thing in garbage.newcomers() if type(thing) is Thing]
    assert old is not new


def test_settling_collects_and_thawing_makes_frozen_cycles_collectable() -> None:
    dead = cycle()
    garbage.settle()
    assert dead() is None
    thing = Thing()
    thing.other = thing
    dying = weakref.ref(thing)
    garbage.settle()
    del thing
    gc.collect()
    assert dying() is not None
    garbage.thaw()
    gc.collect()
    assert dying() is None
    assert gc.get_freeze_count() == 0


def test_with_collection_off_cycles_are_held() -> None:
    gc.disable()
    held = cycle()
    assert not garbage.collect_unless_off()
    assert not garbage.settle()
    assert held() is not None
    assert gc.get_freeze_count() == 0
    gc.enable()
    assert garbage.collect_unless_off()
    assert held() is None


def test_what_the_program_froze_stays_frozen() -> None:
    thing = Thing()
    gc.freeze()
    frozen = gc.get_freeze_count()
    assert not garbage.settle()
    garbage.thaw()
    # Some frozen objects may die; none may join them or be let go.
    assert 0 < gc.get_freeze_count() <= frozen
    assert not any(one is thing for one in gc.get_objects())
    new = Thing()
    assert any(one is new for one in garbage.newcomers())


def test_a_program_that_freezes_after_us_keeps_its_objects_frozen() -> None:
    garbage.settle()
    more = [Thing() for _ in range(10_000)]  # a program freezes all it has, not a handful
    gc.freeze()
    garbage.thaw()
    assert gc.get_freeze_count() > 0
    assert not any(one is more[0] for one in gc.get_objects())


def test_observers_see_everything_before_it_is_hidden_and_are_not_kept_alive() -> None:
    class Observer:
        seen = 0

        def look(self, objects: list[object]) -> None:
            self.seen += sum(type(one) is Thing for one in objects)

    observer = Observer()
    garbage.before_freezing(observer.look)
    thing = Thing()
    garbage.settle()
    assert observer.seen == 1
    garbage.settle()
    assert observer.seen == 1
    gone = weakref.ref(observer)
    del observer
    assert gone() is None
    garbage.settle()
    del thing


def test_the_last_exception_is_dropped() -> None:
    names = ("last_exc", "last_type", "last_value", "last_traceback")
    before = {name: vars(sys).pop(name) for name in names if name in vars(sys)}
    try:
        error = Kept()
        for name in names:
            setattr(sys, name, error)
        dying = weakref.ref(error)
        del error
        garbage.drop_last_exception()
        assert dying() is None
        garbage.drop_last_exception()
    finally:
        vars(sys).update(before)
