"""Budgets that pass with more than half of them unused, and what they could be tightened to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.wording import readable_above

UNUSED = 0.5
_NO_LIMITS = ("allocator_warmup", "baseline")
"""What a card has, and what a test took before: nobody wrote them as limits."""
HEADROOM_PERCENT = 5


@dataclass(frozen=True)
class Tightening:
    """One limit as it stands in one place, what was used of it at most, and a limit that would still hold."""

    source: str
    check: str
    text: str
    measured: int
    limit: int
    suggestion: str
    """What to write instead; empty where nothing at all was used of a peak."""
    tests: int


def tightenings(records: Iterable[TestRecord]) -> list[Tightening]:
    """By place: one limit may bind many tests (a parametrized one, a default from ini), and all of them must fit."""
    groups: dict[tuple[str, str, str], list[tuple[str, CheckResult]]] = {}
    for record in records:
        for result in record.results:
            if result.limit is not None and result.limit.bytes > 0 and result.check not in _NO_LIMITS:
                key = (result.limit.source, result.check, result.limit.text)
                groups.setdefault(key, []).append((record.nodeid, result))
    found = (_tightening(*key, group) for key, group in sorted(groups.items()))
    return [tightening for tightening in found if tightening is not None]


def _tightening(source: str, check: str, text: str, group: list[tuple[str, CheckResult]]) -> Tightening | None:
    used: list[tuple[float, int, int]] = []
    for _, result in group:
        if result.verdict != "pass" or result.measured is None or result.limit is None:
            return None  # what that test needs is not known
        # A tighter limit is only offered where it would also hold with what the meter leaves out.
        needed = result.measured + result.let_go_of
        used.append((needed / result.limit.bytes, needed, result.limit.bytes))
    share, measured, limit = max(used)
    if share >= UNUSED:
        return None
    limits = {bytes_ for _, _, bytes_ in used}
    return Tightening(
        source=source,
        check=check,
        text=text,
        measured=measured,
        limit=limit,
        suggestion=_suggestion(check, text, measured, share, one_limit=len(limits) == 1),
        tests=len({nodeid for nodeid, _ in group}),
    )


def _suggestion(check: str, text: str, measured: int, share: float, one_limit: bool) -> str:
    if measured <= 0:
        return "0" if check == "max_leak" else ""
    if one_limit:
        return readable_above(measured * (100 + HEADROOM_PERCENT) // 100)
    # The same words came to different sizes (a model per parameter): no one size fits, a part of the expression does.
    return f"{math.ceil(share * (100 + HEADROOM_PERCENT)) / 100:g} * ({text})"
