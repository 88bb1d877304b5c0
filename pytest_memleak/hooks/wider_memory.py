"""What each fixture of a wider scope holds of the card: a part of every test that uses it, and of no other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_memleak.insides import noting_fixtures_asked
from pytest_memleak.meters.gauge import SharedGauge

Fixture = pytest.FixtureDef[Any]


@dataclass
class _Brought:
    levels: dict[str, int]
    """Bytes by device."""
    asked: list[Fixture] = field(default_factory=list)
    """Those that its own function has asked for."""
    within: list[Fixture] = field(default_factory=list)
    """Those of them that were set up within its own set-up."""


class WiderMemory:
    def __init__(self) -> None:
        self._brought: dict[Fixture, _Brought] = {}
        self._open: list[_Brought] = []

    @contextlib.contextmanager
    def set_up(self, fixture: Fixture, request: pytest.FixtureRequest, gauges: Sequence[SharedGauge]) -> Iterator[None]:
        before, brought = levels(gauges), _Brought({})
        self._open.append(brought)
        try:
            with noting_fixtures_asked(request) as brought.asked:
                yield
        finally:
            self._open.pop()
        within = self._total(brought.within, lambda one: one.within)
        brought.levels = {
            device: level - before[device] - within.get(device, 0) for device, level in levels(gauges).items()
        }
        self._brought[fixture] = brought
        if self._open:
            self._open[-1].within.append(fixture)

    def torn_down(self, fixture: Fixture) -> None:
        self._brought.pop(fixture, None)

    def of(self, fixtures: Iterable[Fixture]) -> Mapping[str, int]:
        """What these hold together, with those that they have asked for."""
        return self._total(fixtures, lambda one: one.asked)

    def _total(self, fixtures: Iterable[Fixture], more: Callable[[_Brought], list[Fixture]]) -> dict[str, int]:
        found: dict[Fixture, _Brought] = {}
        waiting = list(fixtures)
        while waiting:
            fixture = waiting.pop()
            if fixture in self._brought and fixture not in found:
                found[fixture] = self._brought[fixture]
                waiting += more(found[fixture])
        total: dict[str, int] = {}
        for brought in found.values():
            for device, count in brought.levels.items():
                total[device] = total.get(device, 0) + count
        return total


def levels(gauges: Iterable[SharedGauge]) -> dict[str, int]:
    """What is allocated now, by device, with what nobody saw being allocated."""
    each = (shared.gauge for shared in gauges)
    return {gauge.device: gauge.now()["allocated"] + gauge.unseen() for gauge in each}
