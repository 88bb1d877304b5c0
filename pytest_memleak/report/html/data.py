"""What the page is told of a run and of each test, as plain data. Short names and numbers: there may be thousands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import gcd, inf
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import WORST_FIRST, AtPeak, CardInfo, CheckResult, TestRecord, Timeline
from pytest_memleak.records.run import RunInfo
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.wording import SNAPSHOT, card_line, looks_like, place

_LARGEST = 60
"""So many lines of what was alive at a peak are told one by one, the rest in one sum."""
_STEPS = 10_000
"""A curve's times are told in so many steps: more than a screen has columns."""


class Lines:
    """Texts that tests have in common, by number: most tests of a suite allocate from the same lines."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def overview(collected: Collected, run: RunInfo) -> dict[str, Any]:
    """All that the table and the page's head show."""
    records = list(collected)
    cards: dict[str, int] = {}
    short: list[str] = []
    for record in records:
        if record.card is not None and card_line(record.card) not in cards:
            cards[card_line(record.card)] = len(cards)
            short.append(_short(record.card))
    return {
        "run": run.as_json(),
        "totals": collected.totals().as_json(),
        "silent": list(collected.silent_workers),
        "cards": list(zip(cards, short, strict=True)),
        "predicted": sum(bool(record.card and record.card.backend == "simulated") for record in records),
        "charts": any(record.timelines or any(result.at_peak for result in record.results) for record in records),
        "tests": [_row(record, cards) for record in records],
    }


def opened_row(record: TestRecord, lines: Lines, folder: Path, page: Path) -> dict[str, Any]:
    """All that a test's opened row shows, beyond what the table does. `page`: the folder that the page is in."""
    results = sorted(record.results, key=_badness)
    # What report mode does not enforce is told as it would have been printed.
    told = record.results if record.verdict else [replace(result, enforced=True) for result in record.results]
    data = {
        "results": [_result(result, lines) for result in results],
        "timelines": [_timeline(timeline) for timeline in record.timelines if timeline.seconds],
        "blocks": [
            _without_empty(vars(block) | {"device": place(block.device, block.rank)}) for block in record.blocks
        ],
        "notes": [_note(note, folder, page) for note in record.notes],
        "text": failure_text(told),
        "cap": record.card.cap if record.card else None,
        "devices": _devices(record),
    }
    return _without_empty(data)


def _devices(record: TestRecord) -> list[str]:
    """Those of its card, on each rank."""
    devices = record.card.devices if record.card else ()
    return [place(device, rank) for rank in (range(record.ranks) if record.ranks else [None]) for device in devices]


def _row(record: TestRecord, cards: dict[str, int]) -> dict[str, Any]:
    enforced = [result for result in record.results if result.enforced]
    results = sorted(enforced or record.results, key=_badness)
    first = results[0] if results else None
    row = {
        "nodeid": record.nodeid,
        "place": f"{record.file}:{record.line}",
        "verdict": verdict_word(record),
        "worker": record.worker,
        "attempt": record.attempt if record.attempt > 1 else None,
        "seconds": round(record.duration, 4),
        "card": None if record.card is None else cards[card_line(record.card)],
        "results": len(record.results),
    }
    if first is not None:
        row |= {
            "check": first.check,
            "measured": first.measured,
            "limit": first.limit.bytes if first.limit else None,
            "how": first.how,
        }
    return _without_empty(row)


def _short(card: CardInfo) -> str:
    """To tell the cards of a run apart."""
    simulated = "simulated " if card.backend == "simulated" else ""
    cap = "" if card.cap is None else f", cap {format_size(card.cap)}"
    return f"{simulated}{card.name.removeprefix('NVIDIA ')}{cap}"


def verdict_word(record: TestRecord) -> str:
    """As a person would call it; of what was not enforced, what it would have been."""
    if record.verdict is not None:
        return {"fail": "failed", "pass": "passed"}.get(record.verdict, record.verdict)
    if not record.results:
        return "not asked"
    worst = min((result.verdict for result in record.results), key=WORST_FIRST.index)
    return {"fail": "would fail", "pass": "read"}.get(worst, worst)


def _badness(result: CheckResult) -> tuple[int, bool, float]:
    """The worst verdict first; of equal ones the result nearest to its limit, or beyond it."""
    measured, limit = result.measured or 0, result.limit
    used = 0.0 if measured <= 0 or limit is None else measured / limit.bytes if limit.bytes else inf
    return WORST_FIRST.index(result.verdict), limit is None, -used


def _result(result: CheckResult, lines: Lines) -> dict[str, Any]:
    limit = result.limit
    told = ("check", "verdict", "message", "device", "kind", "how", "measured", "base", "details", "explanation")
    data = {name: getattr(result, name) for name in (*told, "advice")}
    data["device"] = place(result.device, result.rank)
    return _without_empty(
        data
        | {
            "limit": limit and _without_empty(vars(limit) | {"terms": [vars(term) for term in limit.terms]}),
            "alive": _alive(result.at_peak, lines),
            "shown": not result.enforced,
        }
    )


def _alive(groups: Sequence[AtPeak], lines: Lines) -> list[list[int]]:
    """Bytes, blocks, and the numbers of line, user's line and example; at the end the sum of those left out."""
    largest = sorted(groups, reverse=True)
    told = [
        [one.bytes, one.blocks, lines.number(one.line), lines.number(one.by), lines.number(looks_like(one))]
        for one in largest[:_LARGEST]
    ]
    if rest := largest[_LARGEST:]:
        told.append([sum(one.bytes for one in rest), sum(one.blocks for one in rest), -len(rest)])
    return told


def _timeline(timeline: Timeline) -> dict[str, Any]:
    """Differences of whole numbers: a third of the digits. Bytes stay exact, times are good to a pixel."""
    step = max(timeline.seconds[-1] / _STEPS, 1e-6)
    unit = gcd(*timeline.bytes) or 1
    return {
        "device": place(timeline.device, timeline.rank),
        "kind": timeline.kind,
        "how": timeline.how,
        "step": step,
        "seconds": _differences([round(second / step) for second in timeline.seconds]),
        "unit": unit,
        "bytes": _differences([count // unit for count in timeline.bytes]),
        "phases": [list(phase) for phase in timeline.phases],
    }


def _differences(numbers: Sequence[int]) -> list[int]:
    return [*numbers[:1], *(after - before for before, after in pairwise(numbers))]


def _note(note: str, folder: Path, page: Path) -> list[str]:
    """Its text, and where a link in it leads: relative to the page, so that both can be moved together."""
    if not note.startswith(SNAPSHOT):
        return [note]
    path = note.removeprefix(SNAPSHOT)
    try:
        relative = os.fsencode(os.path.relpath(folder / path, page))
    except ValueError:  # no file can have that name
        return [note]
    # Below a folder even if a name looks like a scheme.
    return [SNAPSHOT, path, "./" + quote(relative)]


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in data.items()
        if value is not None and value is not False and not (isinstance(value, str | tuple | list) and not value)
    }
