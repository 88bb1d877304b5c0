"""What became of a run and its baseline, as data that the reports are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_memleak.records.baselines.ratchet import Difference, Findings
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.records.baselines.unmatched import Unmatched


@dataclass(frozen=True)
class Told:
    terms: Terms
    entries: int
    """In the file when the run began."""
    is_there: bool
    compared: int
    """Tests that had an entry and were held against it."""
    above: int
    """Those of them that took more."""
    found: Findings
    """Of tests that passed."""
    narrowed: str = ""
    """Why unused entries were not looked for; empty if they were."""
    written: bool = False
    settled: int = 0
    """Lines that contradicted others, of which the file has the higher values now."""
    unmatched: Unmatched | None = None
    """Why nothing was compared, though there are entries."""
    ci: str = ""
    """The variable that says that this is CI, where such a run must not pass."""

    @property
    def refused(self) -> bool:
        """The run compared nothing where it must."""
        return self.unmatched is not None and bool(self.ci) and not self.terms.makes_the_file

    def as_json(self) -> dict[str, Any]:
        return {
            "path": self.terms.shown,
            "entries": self.entries,
            "update": sorted(self.terms.update),
            "written": self.written,
            "compared": self.compared,
            "above": self.above,
            "missing": [entry.as_json() for entry in self.found.missing],
            "higher": list(map(_difference, self.found.higher)),
            "lower": list(map(_difference, self.found.lower)),
            "unused": None if self.narrowed else [entry.as_json() for entry in self.found.unused],
            "narrowed": self.narrowed,
        }


def _difference(one: Difference) -> dict[str, Any]:
    changes = [
        {"place": place, "recorded": was, "measured": now, "change": now - was} for place, was, now in one.places
    ]
    return {**one.before.key._asdict(), "changes": changes}
