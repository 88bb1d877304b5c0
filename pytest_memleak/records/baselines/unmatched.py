"""A baseline of which nothing matches: entries there are, tests were measured, and none was held against any."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pytest_memleak.records.baselines.entry import Entry, Key
from pytest_memleak.records.baselines.file import Baseline


class Setting(NamedTuple):
    """What a test and an entry must have in common beside the name."""

    backend: str
    card: str
    torch: str


@dataclass(frozen=True)
class Unmatched:
    recorded: tuple[Setting, ...]
    """Of the entries."""
    measured: tuple[Setting, ...]
    """Of the tests that the run measured."""

    @property
    def by_name(self) -> bool:
        """It is the tests' names that are others."""
        return not set(self.recorded).isdisjoint(self.measured)


def unmatched(baseline: Baseline, missing: Collection[Entry], *, whole: bool) -> Unmatched | None:
    """Of a run in which no test had an entry. `missing`: what it measured. A run of a few tests may have those alone
    that are new: there it takes one that is known of another card or torch."""
    tests = {entry.key.test for entry in missing}
    if not tests or not baseline.entries:
        return None
    if not whole and not any(key.test in tests for key in baseline.entries):
        return None
    return Unmatched(_settings(baseline.entries), _settings(entry.key for entry in missing))


def _settings(keys: Iterable[Key]) -> tuple[Setting, ...]:
    return tuple(sorted({Setting(*key[1:]) for key in keys}))
