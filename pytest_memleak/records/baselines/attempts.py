"""Which tests passed in their last attempt: of those alone can be said what they take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_memleak.records.baselines.entry import Entry, Key


@dataclass
class _Attempt:
    entry: Entry | None = None
    ran: bool = False
    bad: bool = False
    ended: bool = False

    @property
    def passed(self) -> bool:
        return self.ran and self.ended and not self.bad


class Attempts:
    """Told phase by phase, as reports come in. A new attempt begins with its set-up and replaces the one before."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], _Attempt] = {}

    def phase(self, test: str, when: str | None, *, good: bool, worker: str = "", entry: Entry | None = None) -> None:
        """`good`: it passed, and not against expectation. `entry` comes with the teardown."""
        if when == "setup":
            self._last[test, worker] = _Attempt()
        attempt = self._last.setdefault((test, worker), _Attempt())
        attempt.bad |= not good
        attempt.ran |= when == "call"
        if when == "teardown":
            attempt.ended, attempt.entry = True, entry

    @property
    def tests(self) -> set[str]:
        """All that were told of."""
        return {test for test, _ in self._last}

    @property
    def unfinished(self) -> set[str]:
        return {test for (test, _), attempt in self._last.items() if not attempt.passed}

    @property
    def measured(self) -> list[Entry]:
        """Of each test one; where several workers ran it, the highest peaks."""
        return _highest(one.entry for one in self._last.values() if one.passed and one.entry is not None)


def _highest(entries: Iterable[Entry]) -> list[Entry]:
    found: dict[Key, Entry] = {}
    for entry in entries:
        known = found.get(entry.key)
        peaks = dict(known.peaks) if known is not None else {}
        for place, count in entry.peaks.items():
            peaks[place] = max(count, peaks.get(place, 0))
        found[entry.key] = entry.with_peaks(peaks)
    return list(found.values())
