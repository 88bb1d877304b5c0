"""The result of one test, as data: made by the checks, sent by a worker, stored in JSON, printed by the reports.

Nothing here knows torch or pytest. Every class turns into plain dictionaries with `as_json` and back with `from_json`,
so that what a worker sends, what the JSON file holds and what the terminal prints are one and the same.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from pytest_memleak.budget.term import Term
from pytest_memleak.records.baselines.entry import Entry

Verdict = Literal["pass", "fail", "inconclusive", "not judged"]
WORST_FIRST: tuple[Verdict, ...] = ("fail", "inconclusive", "not judged", "pass")


@dataclass(frozen=True)
class Limit:
    """A limit as it was written, what it came to, and where it was written."""

    text: str
    bytes: int
    source: str
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, order=True)
class AtPeak:
    """Blocks that were alive at the peak and that one line allocated."""

    bytes: int
    blocks: int
    line: str
    """``transformers/models/llama/modeling_llama.py:178``: the innermost outside torch."""
    by: str
    """The user's line that led there, if that is another one."""
    example: str = ""
    """The largest of them: ``bfloat16 [4096, 4096]``, where it was seen as a tensor."""
    parameter: str = ""
    """Of which parameter or buffer of a model that is the memory: ``model.layers.0.mlp.up_proj.weight and 12 more``."""


@dataclass(frozen=True)
class CheckResult:
    """One promise and what became of it."""

    check: str
    """``max_peak``, ``max_host_peak``, ``max_leak``, ``gpu_cap``, ``allocator_warmup``, ``no_nan`` …"""
    verdict: Verdict
    message: str
    """The first line a person reads: the verdict with both numbers, their unit, and how they were got."""
    device: str = ""
    kind: str = ""
    """``allocated``, ``reserved``, ``committed`` …; ``values`` of what has no bytes."""
    how: str = ""
    measured: int | None = None
    """What is held against the limit: an absolute peak, or the growth of a leak."""
    base: int | None = None
    """Of a peak: what was there before the test began. Of a baseline: what of that is not in `measured`."""
    limit: Limit | None = None
    let_go_of: int = 0
    """Of a peak: bytes in mapped files that came and went, and are not in `measured`."""
    details: tuple[str, ...] = ()
    """Further lines: terms of the limit, phases, owners of what leaked."""
    at_peak: tuple[AtPeak, ...] = ()
    """Of a peak that broke: what was alive then, the largest first; empty where it was not recorded."""
    explanation: tuple[str, ...] = ()
    """The same in lines to be read, and who held what when the promise broke."""
    advice: str = ""
    """What to do next."""
    enforced: bool = True
    """False in report mode and for readings without a limit: shown, never failing."""
    rank: int | None = None
    """Whose it is, of a test that ran on several."""
    recorded: int | None = None
    """Of a baseline: the peak that the file has."""


@dataclass(frozen=True)
class Block:
    """One ``with memory.measure(name)`` inside a test."""

    name: str
    device: str
    kind: str
    how: str
    peak: int
    grown: int
    rank: int | None = None


@dataclass(frozen=True)
class Timeline:
    """How much of one kind of memory was held on one device while a test ran, as it was sampled."""

    device: str
    """``cuda:0``, ``cpu``, ``host``."""
    kind: str
    """That of the check it is drawn for: ``allocated``, ``committed`` …"""
    how: str
    """How the points were got: ``sampled every 2 ms``, ``predicted, sampled every 2 ms``."""
    seconds: tuple[float, ...]
    """Since the test's windows opened, rising; while they are paused (a wider fixture) the clock stands still."""
    bytes: tuple[int, ...]
    """The absolute level at that second."""
    phases: tuple[tuple[str, float], ...] = ()
    """When each part of the test began: ``("setup", 0.0), ("call", 0.12), ("teardown", 3.4)``; again for each run."""
    rank: int | None = None


@dataclass(frozen=True)
class CardInfo:
    """The card a test ran on."""

    backend: str
    """``real``, ``cpu``, ``simulated``."""
    name: str
    devices: tuple[str, ...]
    total: int
    cap: int | None = None
    enforcement: str = ""
    """How the cap holds: ``enforced``, ``judged at the end``, or empty without one."""
    instead: str = ""
    """Why it is the CPU and not a simulated card, where that was to be expected."""


@dataclass(frozen=True)
class TestRecord:
    """Everything that was found out about one run of one test."""

    __test__ = False  # not a test class, whatever pytest makes of the name

    nodeid: str
    file: str
    line: int
    card: CardInfo | None = None
    results: tuple[CheckResult, ...] = ()
    blocks: tuple[Block, ...] = ()
    worker: str = ""
    attempt: int = 1
    notes: tuple[str, ...] = ()
    duration: float = 0.0
    timelines: tuple[Timeline, ...] = ()
    """Only where somebody wants to see them."""
    ranks: int = 0
    """On how many it ran; 0: on the process that reports it."""
    baseline: Entry | None = None
    """What a baseline would say of it; None where that was not asked for, or is not known."""

    @property
    def verdict(self) -> Verdict | None:
        """The worst of the results; None when nothing was asked."""
        seen = {result.verdict for result in self.results if result.enforced}
        return next((verdict for verdict in WORST_FIRST if verdict in seen), None)

    def as_json(self) -> dict[str, Any]:
        data = dataclasses.asdict(self) | {"verdict": self.verdict}
        if not self.timelines:
            del data["timelines"]
        del data["baseline"]
        if self.baseline is not None:
            data["baseline"] = self.baseline.as_json()
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TestRecord:
        fields = {name: value for name, value in data.items() if name != "verdict"}
        card = fields.get("card")
        return cls(
            **fields
            | {
                "card": CardInfo(**card | {"devices": tuple(card["devices"])}) if card else None,
                "results": tuple(_result(result) for result in fields.get("results", ())),
                "blocks": tuple(Block(**block) for block in fields.get("blocks", ())),
                "notes": tuple(fields.get("notes", ())),
                "baseline": Entry.from_json(fields["baseline"]) if fields.get("baseline") else None,
                "timelines": tuple(_timeline(timeline) for timeline in fields.get("timelines", ())),
            }
        )


def _timeline(data: dict[str, Any]) -> Timeline:
    phases = tuple((name, seconds) for name, seconds in data.get("phases", ()))
    return Timeline(**data | {"seconds": tuple(data["seconds"]), "bytes": tuple(data["bytes"]), "phases": phases})


def _result(data: dict[str, Any]) -> CheckResult:
    limit = data.get("limit")
    if limit:
        limit = Limit(**limit | {"terms": tuple(Term(**term) for term in limit["terms"])})
    at_peak = tuple(AtPeak(**group) for group in data["at_peak"])
    lines = {name: tuple(data[name]) for name in ("details", "explanation")}
    return CheckResult(**data | {"limit": limit, "at_peak": at_peak, **lines})
