"""What became of each test with this plugin and without it: read, and held against each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Outcomes = Mapping[str, str]
"""By node id: one of KINDS, the worst of a test's parts."""
KINDS = ("error", "failed", "skipped", "passed")
NOT_RUN = "not run"


@dataclass(frozen=True)
class Changed:
    test: str
    without: str
    measured: tuple[str, ...]
    """In each run with the plugin."""

    def __str__(self) -> str:
        return f"{self.test}: {self.without} without the plugin, {' and '.join(self.measured)} with it"


@dataclass(frozen=True)
class Comparison:
    counts: Mapping[str, int]
    """Of the tests that end in the same way by themselves, how many end how."""
    flaky: tuple[str, ...]
    """Tests that end now so, now so without the plugin: nothing can be said of them."""
    changed: tuple[Changed, ...]

    @property
    def ran(self) -> int:
        return sum(count for kind, count in self.counts.items() if kind in ("passed", "failed"))


def read(lines: Iterable[str]) -> Outcomes:
    """What upstream_plugins/outcomes.py wrote: a line for each part of a test, with tabs."""
    found: dict[str, str] = {}
    for line in lines:
        test, when, outcome, *_ = line.split("\t")
        kind = "error" if outcome == "failed" and when != "call" else outcome
        found[test] = min(kind, found.get(test, kind), key=KINDS.index)
    return found


def compared(without: Sequence[Outcomes], measured: Sequence[Outcomes]) -> Comparison:
    tests = sorted({test for run in (*without, *measured) for test in run})
    stable, flaky, changed = {}, [], []
    for test in tests:
        by_itself = {run.get(test, NOT_RUN) for run in without}
        if len(by_itself) > 1:
            flaky.append(test)
            continue
        stable[test] = by_itself.pop()
        seen = tuple(run.get(test, NOT_RUN) for run in measured)
        if set(seen) != {stable[test]}:
            changed.append(Changed(test, stable[test], seen))
    return Comparison(Counter(stable.values()), tuple(flaky), tuple(changed))
