"""On what terms a run is held against a baseline, as it was asked for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pytest_memleak.budget.tolerance import DEFAULTS, Tolerance
from pytest_memleak.records.baselines.ratchet import ALL, NEW


@dataclass(frozen=True)
class Terms:
    path: Path
    shown: str
    """The path as it is told to people."""
    source: str
    """Where the path was written."""
    update: Collection[str] = frozenset()
    tolerance: Tolerance | None = None
    """None: what suits the way in which the numbers are got."""

    def tolerance_of(self, backend: str) -> Tolerance:
        return DEFAULTS[backend] if self.tolerance is None else self.tolerance

    def allowed(self, backend: str, recorded: int) -> int:
        return recorded + self.tolerance_of(backend).above(recorded)

    def updates(self, what: str) -> bool:
        return what in self.update or ALL in self.update

    @property
    def makes_the_file(self) -> bool:
        return self.updates(NEW)
