"""What a run makes of a baseline: peaks go up only if that is allowed, and what may be tighter is offered.

A change is made to the file as it is when it is written, which may not be the one that the run began with: another
process may have written its own in the meantime. Where both changed one entry, the higher peaks stand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from pytest_memleak.records.baselines.entry import Entry, Key
from pytest_memleak.records.baselines.file import Baseline

NEW, RAISE, TRIM, ALL = "new", "raise", "trim", "all"
UPDATES = (NEW, RAISE, TRIM, ALL)

Allowed = Callable[[str, int], int]
"""Of a backend and a recorded peak: what may be reached before it counts as higher."""


@dataclass(frozen=True)
class Difference:
    """One entry that a run would have otherwise."""

    before: Entry
    after: Entry

    @property
    def places(self) -> list[tuple[str, int, int]]:
        """Where, what was recorded, and what it came to; all places that differ."""
        was, now = self.before.peaks, self.after.peaks
        both = sorted({*was, *now})
        return [(one, was.get(one, 0), now.get(one, 0)) for one in both if was.get(one, 0) != now.get(one, 0)]


@dataclass(frozen=True)
class Findings:
    """A run held against a baseline."""

    missing: tuple[Entry, ...] = ()
    """Measured, and without an entry."""
    higher: tuple[Difference, ...] = ()
    lower: tuple[Difference, ...] = ()
    """By more than the tolerance."""
    unused: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Changes:
    """Entries to be written, with what stood there when the run began."""

    of: Mapping[Key, tuple[Entry | None, Entry | None]] = field(default_factory=dict)

    def applied_to(self, now: Baseline) -> Baseline:
        return now.changed({key: _settled(before, after, now.get(key)) for key, (before, after) in self.of.items()})


def compare(
    baseline: Baseline,
    measured: Collection[Entry],
    allowed: Allowed,
    *,
    unfinished: Collection[str] = (),
    whole: bool = False,
) -> Findings:
    """`measured`: tests that passed, each once. `unfinished`: tests that did not, of which nothing can be said.
    `whole`: the run had all tests there are, so that an entry of another test is one of a test that is gone."""
    missing, higher, lower = [], [], []
    for entry in sorted(measured, key=lambda one: one.key):
        recorded = baseline.get(entry.key)
        if recorded is None:
            if any(entry.peaks.values()):
                missing.append(entry)
            continue
        limit = partial(allowed, entry.key.backend)
        if raised := _raised(recorded, entry, limit):
            higher.append(Difference(recorded, raised))
        if lowered := _lowered(recorded, entry, limit):
            lower.append(Difference(recorded, lowered))
    unused = _unused(baseline, measured, unfinished) if whole else []
    return Findings(tuple(missing), tuple(higher), tuple(lower), tuple(unused))


def changes(found: Findings, updates: Collection[str]) -> Changes:
    wanted: dict[Key, tuple[Entry | None, Entry | None]] = {}
    every = ALL in updates
    if every or NEW in updates:
        wanted |= {entry.key: (None, entry) for entry in found.missing}
    if every or TRIM in updates:
        wanted |= {one.before.key: (one.before, one.after) for one in found.lower}
        wanted |= {entry.key: (entry, None) for entry in found.unused}
    if every or RAISE in updates:
        for one in found.higher:
            _, lowered = wanted.get(one.before.key, (None, None))
            wanted[one.before.key] = (one.before, _both(lowered, one) if lowered else one.after)
    return Changes(wanted)


def _both(lowered: Entry, higher: Difference) -> Entry:
    """A test that takes less in one place and more in another."""
    return lowered.with_peaks(lowered.peaks | {place: now for place, _, now in higher.places})


def _raised(recorded: Entry, measured: Entry, limit: Callable[[int], int]) -> Entry | None:
    return _taken_over(recorded, measured, lambda was, now: now > limit(was))


def _lowered(recorded: Entry, measured: Entry, limit: Callable[[int], int]) -> Entry | None:
    """What is lower by no more than the tolerance may be noise, and would come back as a failure."""
    return _taken_over(recorded, measured, lambda was, now: was > limit(now))


def _taken_over(recorded: Entry, measured: Entry, differs: Callable[[int, int], bool]) -> Entry | None:
    """The recorded entry with the measured peaks that differ; None if none does. A place that is not named held
    nothing."""
    was, now = recorded.peaks, measured.peaks
    changed = {one: now.get(one, 0) for one in {*was, *now} if differs(was.get(one, 0), now.get(one, 0))}
    return recorded.with_peaks(was | changed) if changed else None


def _unused(baseline: Baseline, measured: Collection[Entry], unfinished: Collection[str]) -> list[Entry]:
    """Of tests that are gone, or are no longer measured on a card that this run had. An entry of a card or a release of
    torch that this run did not have may be another run's."""
    releases = {(entry.key.backend, entry.key.torch) for entry in measured}
    cards = {entry.key[1:] for entry in measured}
    ended, keys = {entry.key.test for entry in measured}, {entry.key for entry in measured}
    waiting = set(unfinished)
    return [
        entry
        for key, entry in sorted(baseline.entries.items())
        if key not in keys
        and key.test not in waiting
        and (key.backend, key.torch) in releases
        and (key.test not in ended or key[1:] in cards)
    ]


def _settled(before: Entry | None, after: Entry | None, now: Entry | None) -> Entry | None:
    if now == before or now is None:
        # Gone in the meantime: what was measured just now is no less true for that.
        return after
    if after is None:
        return now  # somebody has measured it anew: it is used
    peaks = {place: max(now.peaks.get(place, 0), after.peaks.get(place, 0)) for place in {*now.peaks, *after.peaks}}
    return now.with_peaks(peaks)
