"""All results of a run in one place: what the controller gathers, and what the reports read."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pytest_memleak.records.record import TestRecord


@dataclass(frozen=True)
class Highest:
    """The highest peak of a run or a worker on one device, and the test that reached it."""

    check: str
    device: str
    kind: str
    bytes: int
    nodeid: str


@dataclass(frozen=True)
class Totals:
    tests: int = 0
    """Tests with a record, judged or not."""
    passed: int = 0
    failed: int = 0
    inconclusive: int = 0
    not_judged: int = 0
    would_fail: int = 0
    """Tests over a limit that was not enforced, as in report mode."""
    reruns: int = 0
    highest_peaks: tuple[Highest, ...] = ()

    @property
    def judged(self) -> int:
        return self.passed + self.failed + self.inconclusive

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Collected:
    """The records of a run. A test that runs again on the same worker replaces what it said before."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], TestRecord] = {}
        self._silent: set[str] = set()

    def add(self, record: TestRecord) -> None:
        key = (record.nodeid, record.worker)
        before = self._records.get(key)
        if before is not None:
            # Whoever reruns tests may or may not count; the record does.
            record = dataclasses.replace(record, attempt=max(record.attempt, before.attempt + 1))
        self._records[key] = record

    def worker_fell_silent(self, worker: str) -> None:
        """A worker ended without saying so: its finished tests are here, those it was running or still had are not."""
        self._silent.add(worker)

    @property
    def silent_workers(self) -> tuple[str, ...]:
        return tuple(sorted(self._silent, key=_natural))

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of the workers that sent a record; empty in a run without workers."""
        return tuple(sorted({record.worker for record in self._records.values() if record.worker}, key=_natural))

    def totals(self, worker: str | None = None) -> Totals:
        """Of one worker, or of the whole run."""
        return _totals(record for record in self if worker is None or record.worker == worker)

    def __iter__(self) -> Iterator[TestRecord]:
        return iter(self._records[key] for key in sorted(self._records))

    def __len__(self) -> int:
        return len(self._records)


def _totals(records: Iterable[TestRecord]) -> Totals:
    verdicts: Counter[str | None] = Counter()
    tests = would_fail = reruns = 0
    highest: dict[tuple[str, str, str], Highest] = {}
    for record in records:
        tests += 1
        reruns += record.attempt - 1
        verdicts[record.verdict] += 1
        would_fail += any(result.verdict == "fail" and not result.enforced for result in record.results)
        for result in record.results:
            if result.check not in ("max_peak", "max_host_peak") or result.measured is None:
                continue
            key = (result.check, result.device, result.kind)
            if key not in highest or result.measured > highest[key].bytes:
                highest[key] = Highest(*key, bytes=result.measured, nodeid=record.nodeid)
    return Totals(
        tests=tests,
        passed=verdicts["pass"],
        failed=verdicts["fail"],
        inconclusive=verdicts["inconclusive"],
        not_judged=verdicts["not judged"],
        would_fail=would_fail,
        reruns=reruns,
        highest_peaks=tuple(highest[key] for key in sorted(highest)),
    )


def _natural(worker: str) -> tuple[str, int]:
    """gw2 before gw10."""
    name = worker.rstrip("0123456789")
    return name, int(worker[len(name) :] or 0)
