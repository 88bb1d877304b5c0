"""Whom a test that comes later does not overtake: what they wait for is data, and so is what fits."""

from __future__ import annotations

import time

import pytest

from pytest_memleak.workers.holders import Holder, Want
from pytest_memleak.workers.queueing import PATIENCE, ahead


def first_of(waited: float, fitting: str, waits: bool = True) -> bool:
    """Whether one that waits for two of three cards goes before one that has come now."""
    now = time.monotonic()
    early = Want("early", 1, 2, ("a", "b", "c"), now - waited) if waits else None
    return bool(ahead(Want("late", 1, 1, ("a",), now), [Holder(1, "gw0", want=early)], lambda key, _: key in fitting))


@pytest.mark.parametrize(("fitting", "first"), [("", False), ("a", False), ("ac", True), ("abc", True)])
def test_one_that_will_have_as_many_cards_as_it_wants(fitting: str, first: bool) -> None:
    assert first_of(PATIENCE + 1, fitting) == first


def test_nobody_who_has_not_waited_for_long_or_came_later_or_waits_for_nothing() -> None:
    assert not first_of(0, "abc")
    assert not first_of(-1, "abc")
    assert not first_of(PATIENCE + 1, "abc", waits=False)


def test_who_came_later_does_not_go_first_however_long_it_has_waited() -> None:
    now = time.monotonic()
    since = now - 3 * PATIENCE
    later = Holder(1, "gw0", want=Want("later", 1, 1, ("a",), since + PATIENCE))
    assert ahead(Want("first", 1, 1, ("a",), since), [later], lambda key, _: True) == ()
