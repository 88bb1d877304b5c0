"""The fastest plan that fits a card, out of all admissible ones: not one of them is left out that could be better."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING

from pytest_memleak.errors import BadInput, MemleakError, Unavailable
from pytest_memleak.planner.completing import checked, complete, listed
from pytest_memleak.planner.estimate import highest
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.pace import Links, mean_seconds
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.wording import compared, size

if TYPE_CHECKING:
    from pytest_memleak.planner.candidates import Candidate, Candidates

ALPHA = 1.10
"""An estimate may be short by a tenth: ProTrain's own factor (arXiv 2406.08334)."""

_KEPT = {"n_swap": 0, "n_offload": 0}
"""Activations that stay on the card."""


@dataclass(frozen=True)
class Rung:
    """A plan, and how it was estimated."""

    plan: Plan
    peak: int
    """Without a margin."""
    seconds: float
    """Of a step: to be compared with that of other plans."""
    where: str
    """The part of the step that has the peak."""


@dataclass(frozen=True)
class Larger:
    """The plan that would be faster for the least more memory."""

    rung: Rung
    missing: int
    """Bytes of capacity, the margin included."""

    def __str__(self) -> str:
        return (
            f"the next larger plan ({self.rung.plan}) does not fit: at its peak ({self.rung.where}) it lacks "
            f"{size(self.missing)}"
        )


@dataclass(frozen=True)
class Found:
    plan: Plan
    peak: int
    seconds: float
    where: str
    why_not_larger: Larger | None
    """None if no plan is faster, and of a race."""


class NothingFits(MemleakError):
    """Of all plans that were asked for, not even the smallest one does."""

    def __init__(self, smallest: Rung, capacity: int, margin: float, what: str, headroom: int = 0) -> None:
        self.smallest = smallest
        self.capacity = capacity
        self.needed = math.ceil(smallest.peak * margin) + headroom
        """Of capacity, with what is left free."""
        needed, there = compared(self.needed, capacity)
        spare = f"; times {margin:g}, since an estimate may be short, that" if margin != 1 else ", which"
        left = f" with {size(headroom)} left free" if headroom else ""
        super().__init__(
            f"no plan{what} fits {there}{left}: the smallest one ({smallest.plan}) has a peak of "
            f"{size(smallest.peak)} ({smallest.where}){spare}{left} takes a capacity of {needed}"
        )


def search(
    profiles: Sequence[Profile],
    layout: Layout,
    capacity: int,
    links: Links,
    *,
    margin: float = ALPHA,
    headroom: int = 0,
    fixed: Mapping[str, int] | None = None,
    forbid_activation_offload: bool = False,
) -> Found:
    """Among plans as fast as the fastest one, that with the lowest peak. `headroom`: bytes of the capacity that are
    left free."""
    _refuse_odd(capacity, margin)
    asked = dict(fixed or {})
    knobs = _knobs(layout, asked, forbid_activation_offload)
    candidates, rounding = _candidates(profiles, layout, links, knobs)

    def rung(candidate: Candidate) -> Rung:
        return _rung(profiles, layout, links, candidate)

    fastest = candidates.fastest(_limit(capacity - headroom, margin))
    if fastest is None:
        smallest = candidates.smallest()
        assert smallest is not None  # `_knobs` has completed them into a plan
        what = f" with {listed(asked)}" if asked else ""
        what += " that keeps activations on the card" if forbid_activation_offload else ""
        raise NothingFits(rung(smallest), capacity, margin, what, headroom)
    best = candidates.smallest(fastest.seconds * (1 + rounding))
    faster = candidates.smallest(fastest.seconds * (1 - rounding))
    found, larger = rung(best or fastest), rung(faster) if faster else None
    why_not = Larger(larger, math.ceil(larger.peak * margin) + headroom - capacity) if larger else None
    return Found(found.plan, found.peak, found.seconds, found.where, why_not)


def ladder(
    profiles: Sequence[Profile],
    layout: Layout,
    links: Links,
    *,
    fixed: Mapping[str, int] | None = None,
    forbid_activation_offload: bool = False,
) -> Iterator[Rung]:
    """What more memory buys: each plan is the fastest one with its peak, and the next one is the smallest that is
    faster. Each takes a search, and there can be hundreds."""
    knobs = _knobs(layout, dict(fixed or {}), forbid_activation_offload)
    candidates, rounding = _candidates(profiles, layout, links, knobs)
    smallest = candidates.smallest()
    while smallest is not None:
        fastest = candidates.fastest(smallest.peak) or smallest
        yield _rung(profiles, layout, links, fastest)
        smallest = candidates.smallest(fastest.seconds * (1 - rounding))


def _knobs(layout: Layout, asked: dict[str, int], keep_activations: bool) -> dict[str, int]:
    """Which have one value, once it is clear that there are plans with them."""
    given = checked(layout, **asked)
    moving = {name: value for name, value in given.items() if name in _KEPT and value}
    if keep_activations and moving:
        raise BadInput(
            f"{listed(moving)} would take activations off the card, and forbid_activation_offload says that they stay: "
            "leave out one of the two"
        )
    complete(layout, **given)
    return {**given, **_KEPT} if keep_activations else given


def _candidates(
    profiles: Sequence[Profile], layout: Layout, links: Links, knobs: Mapping[str, int]
) -> tuple[Candidates, float]:
    if not profiles or any(len(profile.blocks) != layout.blocks for profile in profiles):
        raise ValueError(f"a search needs profiles of a model with {layout.blocks} blocks, one at least")
    try:
        from pytest_memleak.planner.candidates import ROUNDING, Candidates
    except ImportError as why:
        raise Unavailable(f"the search for a plan needs numpy: pip install numpy ({why})") from why
    return Candidates(profiles, layout, links, knobs), ROUNDING


def _rung(profiles: Sequence[Profile], layout: Layout, links: Links, candidate: Candidate) -> Rung:
    """By the walk through the step itself, not by the tables that have found it."""
    point = highest(profiles, layout, candidate.plan)
    if point.peak != candidate.peak:
        raise AssertionError(f"{candidate} was searched for, and {point} is its peak")
    return Rung(candidate.plan, point.peak, mean_seconds(profiles, layout, candidate.plan, links), point.where)


def _refuse_odd(capacity: int, margin: float) -> None:
    if not isinstance(capacity, Real) or not math.isfinite(capacity):
        raise BadInput(f"capacity={capacity!r} has to be a number of bytes: 24 GiB are 24 * 1024**3")
    if not isinstance(margin, Real) or not 0 < margin < math.inf:
        raise BadInput(
            f"margin={margin!r} has to be a number of more than 0: peaks are multiplied by it, and {ALPHA:g} leaves a "
            "tenth to spare"
        )


def _limit(capacity: int, margin: float) -> int:
    """The highest peak that fits. A division alone may be one off."""
    limit = math.floor(capacity / margin) + 1
    while limit * margin > capacity:
        limit -= 1
    return limit
