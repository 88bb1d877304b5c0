"""What is run, and what came of it, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_memleak.records.record import TestRecord
from pytest_memleak.releases.case import TIMEOUT, Case

Verdict = Literal["pass", "fail", "inconclusive", "not-run"]
Versions = tuple[tuple[str, str], ...]
"""Packages and the releases of them that are tried: ``(("transformers", "5.1.0"),)``."""


def in_words(versions: Versions) -> str:
    return ", ".join(f"{package} {release}" for package, release in versions)


@dataclass(frozen=True)
class Environment:
    """What is installed. Runs that want the same share it."""

    versions: Versions
    requirements: tuple[str, ...]
    """All else, as pip takes it."""
    python: str = ""
    """A version or a path; empty: the interpreter that runs here."""

    def all_requirements(self) -> list[str]:
        return [*(f"{package}=={release}" for package, release in self.versions), *self.requirements]


@dataclass(frozen=True)
class Run:
    """One process of pytest."""

    environment: Environment
    arguments: tuple[str, ...]
    names: tuple[str, ...]
    """What to call it where no test is known: what was to be run, as it was written."""
    case: Case | None = None
    good: bool = True
    """Of a case: whether it has to pass."""
    timeout: float = TIMEOUT
    attempt: int = 1
    cannot: str = ""
    """Why it cannot even be tried: its releases are not known, say."""


@dataclass(frozen=True)
class Cell:
    """One test with one set of releases."""

    versions: Versions
    test: str
    verdict: Verdict
    reason: str = ""
    peak: int | None = None
    peak_how: str = ""
    """``max_peak, allocated on cuda:0, predicted``."""
    seconds: float = 0.0
    failure: str = ""
    """All that pytest printed of it."""
    record: TestRecord | None = None
    installed: dict[str, str] = field(default_factory=dict)
    """All packages of the environment."""
    case: str = ""
    expected: Literal["pass", "fail", ""] = ""
    differs: tuple[str, ...] = ()
    """What is not as a case expects, in words."""
    stored: str = ""
    """When it was run, if that was by an earlier call."""

    @property
    def fine(self) -> bool:
        """Nobody has to look at it: as its case expects, or passed."""
        return not self.differs if self.expected else self.verdict == "pass"

    def as_json(self) -> dict[str, Any]:
        return {
            "versions": dict(self.versions),
            "test": self.test,
            "verdict": self.verdict,
            "peak": self.peak,
            "peak_how": self.peak_how,
            "reason": self.reason,
            "case": self.case or None,
            "expected": self.expected or None,
            "as_expected": self.fine,
            "differs": list(self.differs),
            "seconds": round(self.seconds, 3),
            "stored": self.stored or None,
            "installed": self.installed,
        }

    def to_store(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"record": self.record.as_json() if self.record else None}

    @classmethod
    def from_store(cls, data: dict[str, Any], when: str) -> Cell:
        record = data["record"]
        return cls(
            **data
            | {
                "versions": tuple((package, release) for package, release in data["versions"]),
                "record": TestRecord.from_json(record) if record else None,
                "differs": tuple(data["differs"]),
                "stored": when,
            }
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a `Run`."""

    run: Run
    cells: tuple[Cell, ...]
    complete: bool
    """Nothing of it has to be run again: every test ran to its end, or was skipped."""
    collected: bool = False
    """pytest ended by itself, and all tests that there are with these releases have a cell."""


def not_run(run: Run, reason: str, installed: dict[str, str] | None = None) -> Outcome:
    cells = tuple(
        Cell(run.environment.versions, name, "not-run", reason, installed=installed or {}) for name in run.names
    )
    return Outcome(run, cells, complete=False)


@dataclass(frozen=True)
class Began:
    """Something is being done for these releases."""

    versions: Versions
    what: str


@dataclass(frozen=True)
class Done:
    versions: Versions
    cells: tuple[Cell, ...]


Event = Began | Done


@dataclass(frozen=True)
class Place:
    """Where one run has its files."""

    folder: Path
    python: Path
    installed: dict[str, str]
