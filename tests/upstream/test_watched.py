"""Which model is watched: the innermost scope's, of a block, a test, or a wider fixture that outlives the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
from torch import nn

from pytest_memleak.upstream import watched


@pytest.fixture(autouse=True)
def nothing_else_is_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watched, "_everywhere", watched.Scope())
    monkeypatch.setattr(watched, "_open", [])
    monkeypatch.setattr(watched, "_kept", [])
    yield
    assert (watched._open, watched._kept) == ([], [])


def watch(width: int) -> None:
    watched.watch(nn.Linear(width, 1, bias=False))


def widths() -> list[int]:
    return [sizes.term("fp16_size").bytes // 2 for sizes in watched.watched()]


def set_up(width: int, *, of: int = 1) -> watched.Scope:
    """A wider fixture that watches a model."""
    opened = watched.open_scope(of)
    watch(width)
    watched.keep_scope(opened)
    return opened


def test_a_wider_fixtures_model_is_watched_until_its_finalizer() -> None:
    with watched.scope():
        fixture = set_up(3)
        assert widths() == [3]
    with watched.scope():
        assert widths() == [3]
    watched.close_scope(fixture)
    watched.close_scope(fixture)
    assert widths() == []


def test_a_tests_own_model_hides_a_fixtures_also_one_that_is_set_up_later() -> None:
    with watched.scope():
        watch(1)
        fixture = set_up(3)
        watch(2)
        assert widths() == [1, 2]
    with watched.scope():
        assert widths() == [3]
        with watched.scope():
            watch(4)
            assert widths() == [4]
        assert widths() == [3]
    watched.close_scope(fixture)


def test_the_narrower_fixture_counts_however_they_were_set_up() -> None:
    module = watched.open_scope(1)
    session = set_up(5, of=3)
    watch(3)
    watched.keep_scope(module)
    assert widths() == [3]
    watched.close_scope(module)
    assert widths() == [5]
    watched.close_scope(session)


def test_fixtures_of_one_width_do_not_hide_each_other() -> None:
    fixtures = [set_up(3), set_up(4)]
    assert widths() == [3, 4]
    for fixture in fixtures:
        watched.close_scope(fixture)


def test_a_test_sees_only_the_fixtures_it_uses() -> None:
    small, large = set_up(3), set_up(4)
    with watched.scope(uses=lambda: [large]):
        assert widths() == [4]
        with watched.scope():
            assert widths() == [4]
    with watched.scope(uses=lambda: []):
        assert widths() == []
    watched.close_scope(small)
    watched.close_scope(large)


def test_a_fixture_whose_set_up_failed_leaves_nothing() -> None:
    with watched.scope():
        fixture = watched.open_scope()
        watch(3)
        watched.close_scope(fixture)
        watched.keep_scope(fixture)
        watch(1)
        assert widths() == [1]
    assert widths() == []


def test_what_is_watched_outside_of_all_counts_last() -> None:
    watch(9)
    fixture = set_up(3)
    assert widths() == [3]
    watched.close_scope(fixture)
    assert widths() == [9]
