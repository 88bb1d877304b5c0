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
def session() -> Iterator[None]:
    def clean() -> None:
        garbage.end_session()
        gc.unfreeze()
        gc.enable()

    clean()
    garbage.begin_session()
    yield
    clean()


def things(objects: list[object]) -> list[Thing]:
    return [one for one in objects if type(one) is Thing]


def test_newcomers_are_what_came_after_settling() -> None:
    old = Thing()
    assert garbage.settle()
    new = Thing()
    found = [thing for thing in garbage.newcomers() if type(thing) is Thing]
    assert found == [new]
    assert garbage.settle()
    assert not [thing for thing in garbage.newcomers() if type(thing) is Thing]
    assert old is not new


def test_the_programs_own_collection_reaches_what_is_frozen_and_newcomers_stay_known() -> None:
    dead = cycle()
    garbage.settle()
    assert dead() is None
    old = Thing()
    old.other = old
    dying = weakref.ref(old)
    kept = Thing()
    garbage.settle()
    new = Thing()
    del old
    gc.collect(1)
    assert dying() is not None
    gc.collect()
    assert dying() is None
    later = Thing()
    assert things(garbage.in_sight()) == [later]
    assert {id(one) for one in things(garbage.newcomers())} == {id(new), id(later)}
    garbage.settle()
    assert not things(garbage.newcomers())
    del kept


def test_newcomers_that_become_garbage_after_the_programs_collection_are_collected() -> None:
    garbage.settle()
    new = Thing()
    new.other = new
    gc.collect()
    dying = weakref.ref(new)
    del new
    garbage.collect_unless_off()
    assert dying() is None
    new = Thing()
    new.other = new
    gc.collect()
    dying = weakref.ref(new)
    del new
    garbage.settle()
    assert dying() is None


def test_the_program_sees_everything_and_nothing_frozen() -> None:
    count = gc.get_freeze_count()
    old = Thing()
    holder = [old]
    referrers = len(gc.get_referrers(old))
    assert garbage.settle()
    assert any(one is old for one in gc.get_objects())
    assert any(one is holder for one in gc.get_referrers(old))
    assert len(gc.get_referrers(old)) == referrers
    assert gc.get_freeze_count() == count
    new = Thing()
    gc.unfreeze()
    assert things(garbage.newcomers()) == [new]
    assert gc.get_freeze_count() == 0


def test_a_collection_that_the_program_runs_finds_no_freeze_of_ours_even_without_callbacks() -> None:
    gc.callbacks.clear()
    garbage.settle()
    old = Thing()
    old.other = old
    garbage.settle()
    dying = weakref.ref(old)
    del old
    gc.collect()
    assert dying() is None


def test_with_collection_off_cycles_are_held_and_frozen() -> None:
    gc.disable()
    held = cycle()
    assert not garbage.collect_unless_off()
    assert garbage.settle()
    assert held() is not None
    assert not things(garbage.newcomers())
    gc.enable()
    assert garbage.collect_everything()
    assert held() is None


def test_garbage_among_the_frozen_waits_for_stale() -> None:
    old = Thing()
    old.other = old
    dying = weakref.ref(old)
    garbage.settle()
    del old
    garbage.settle()
    assert dying() is not None
    garbage.stale()
    garbage.settle()
    assert dying() is None


def test_hiding_newcomers_collects_them_without_walking_what_is_frozen() -> None:
    old = Thing()
    old.other = old
    dying = weakref.ref(old)
    garbage.settle()
    del old
    young = cycle()
    kept = Thing()
    assert garbage.hide_newcomers()
    assert young() is None
    assert dying() is not None
    assert not things(garbage.newcomers())
    del kept


def test_garbage_hidden_without_a_collection_is_collected_by_the_next_settling() -> None:
    young = cycle()
    garbage.hide_newcomers()
    assert young() is not None
    garbage.settle()
    assert young() is None


def test_collection_goes_on_until_nothing_is_found() -> None:
    released: list[weakref.ref[Thing]] = []

    class Last(Thing):
        def __del__(self) -> None:
            released.append(cycle())

    last = Last()
    last.other = last
    del last
    garbage.collect_unless_off()
    (reference,) = released
    assert reference() is None


def test_a_program_that_froze_before_keeps_its_objects_frozen() -> None:
    garbage.end_session()
    thing = Thing()
    more = [Thing() for _ in range(10_000)]  # a program freezes all it has, not a handful
    gc.freeze()
    garbage.begin_session()
    frozen = gc.get_freeze_count()
    assert not garbage.settle()
    garbage.thaw()
    # Some frozen objects may die; none may join them or be let go.
    assert len(more) < gc.get_freeze_count() <= frozen
    assert not any(one is thing for one in gc.get_objects())
    new = Thing()
    assert any(one is new for one in garbage.newcomers())


def test_a_program_that_freezes_after_us_keeps_its_objects_frozen_until_it_says_so() -> None:
    garbage.settle()
    few = [Thing() for _ in range(3)]
    gc.freeze()
    garbage.thaw()
    gc.collect()
    assert gc.get_freeze_count() > 0
    assert not any(one is few[0] for one in gc.get_objects())
    assert not garbage.settle()
    gc.unfreeze()
    assert gc.get_freeze_count() == 0
    assert any(one is few[0] for one in gc.get_objects())
    assert garbage.settle()


def test_the_session_leaves_gc_as_it_was() -> None:
    garbage.end_session()
    names = ("get_objects", "get_referrers", "freeze", "unfreeze", "get_freeze_count")
    before = [getattr(gc, name) for name in names]
    callbacks = list(gc.callbacks)
    garbage.begin_session()
    garbage.begin_session()
    assert len(gc.callbacks) == len(callbacks) + 1
    garbage.settle()
    garbage.end_session()
    garbage.end_session()
    assert [getattr(gc, name) for name in names] == before
    assert gc.callbacks == callbacks
    assert gc.get_freeze_count() == 0


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


def test_a_question_does_not_answer_with_itself() -> None:
    thing = Thing()
    holder = [thing]
    garbage.begin_session()
    try:
        assert [one for one in gc.get_referrers(thing) if type(one) is tuple] == []
        garbage.settle()
        found = gc.get_referrers(thing)
    finally:
        garbage.end_session()
    assert any(one is holder for one in found)
    assert [one for one in found if type(one) is tuple] == []
