"""How much of a card a test reserves before it begins: what it says of itself, else what it took the last time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from pytest_memleak.budget.expression import Expression
from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput
from pytest_memleak.insides import own_id
from pytest_memleak.plan import PeakBudget, Plan
from pytest_memleak.settings import EQUAL, Settings

GIB = 1024**3
PROFILED = "profiled_vram_gib"
"""A marker that some projects have of their own: GiB that a test was seen to take."""

Recorded = Mapping[str, int]
"""The peak of each test when it was recorded, by its own id (`insides.own_id`), in bytes."""

RECORDED = pytest.StashKey[Recorded]()
"""Where a run's are kept, on its config; none are known without it."""


@dataclass(frozen=True)
class Bytes:
    """So much of the card."""

    bytes: int
    source: str


@dataclass(frozen=True)
class Share:
    """One of so many equal parts of what others leave of the card; 1: all of it."""

    parts: int


Need = Bytes | Share


def need_of(item: pytest.Item, plan: Plan | None, settings: Settings, parts: int, ranked: bool = False) -> Need | None:
    """None: the test says nothing of memory at all, and takes no part. `parts`: how many workers have its card.

    What the test says itself goes before what holds for all tests of the run.
    """
    profiled = _profiled(item)
    if plan is None and profiled is None and not ranked:
        return None
    peak = _known_peak(plan.peak) if plan is not None else None
    cap = Bytes(plan.cap.bytes, plan.cap.source) if plan is not None and plan.cap is not None else None
    own_cap = cap if plan is not None and plan.cap_is_asked else None
    own_peak = peak if item.get_closest_marker("max_peak") is not None else None
    recorded = item.config.stash.get(RECORDED, {}).get(own_id(item))
    last = None if recorded is None else Bytes(recorded, "its peak by the baseline")
    return own_cap or own_peak or profiled or cap or peak or last or _unsaid(settings, 1 if ranked else parts)


def _unsaid(settings: Settings, parts: int) -> Need:
    """Of ranks it is the whole card, unless a size was given for all tests."""
    if isinstance(settings.share, int):
        return Bytes(settings.share, settings.share_given.source if settings.share_given else "--memleak-share")
    return Share(parts if settings.share == EQUAL else 1)


def known_limit(settings: Settings) -> int | None:
    """What every test of a run may take at most, as far as its options say so."""
    from pytest_memleak.budget.expression import parse

    if settings.cap is not None:
        return settings.cap
    if given := settings.defaults.get("max_peak"):
        return _bytes_of(parse(given.text))
    return settings.share if isinstance(settings.share, int) else None


def _known_peak(peak: PeakBudget | None) -> Bytes | None:
    """A promise that says a number before the test has run: no size of a model is in it, and all of the card's is."""
    if peak is None or not peak.warmup or peak.rank not in (None, "max") or peak.device not in (None, 0, *_FIRST):
        return None
    known = _bytes_of(peak.limit)
    return None if known is None else Bytes(known, peak.source)


_FIRST = ("0", "cuda", "cuda:0")


def _bytes_of(limit: Expression) -> int | None:
    return None if limit.names else limit.evaluate(_no_names)[0]


def _profiled(item: pytest.Item) -> Bytes | None:
    mark = item.get_closest_marker(PROFILED)
    if mark is None:
        return None
    written = ", ".join([*map(repr, mark.args), *(f"{name}={value!r}" for name, value in mark.kwargs.items())])
    given = (*mark.args, *mark.kwargs.values())
    if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], int | float) or not given[0] > 0:
        raise BadInput(f"{item.nodeid}: @pytest.mark.{PROFILED}({written}) is not a number of GiB: write 1.5, 20, …")
    return Bytes(round(given[0] * GIB), f"@pytest.mark.{PROFILED}({written})")


def _no_names(name: str) -> Term:
    raise AssertionError(f"a limit without names asked for {name}")
