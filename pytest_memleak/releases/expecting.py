"""Whether cells of a case are what the case says: the right verdict, for the right reason, with the right figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from packaging.utils import canonicalize_name

from pytest_memleak.records.record import TestRecord
from pytest_memleak.releases.case import Case, Figure
from pytest_memleak.releases.cell import Cell, Outcome
from pytest_memleak.releases.verdicts import highest
from pytest_memleak.wording import compared, exact


def expecting(outcome: Outcome) -> Outcome:
    case = outcome.run.case
    if case is None:
        return outcome
    cells = tuple(_expecting(cell, case, good=outcome.run.good) for cell in outcome.cells)
    return replace(outcome, cells=cells)


def _expecting(cell: Cell, case: Case, *, good: bool) -> Cell:
    expected = "pass" if good else "fail"
    differs = []
    if cell.verdict != expected:
        differs.append(f"expected {expected}")
    elif not good and case.fails_with not in f"{cell.reason}\n{cell.failure}":
        differs.append(f"it failed, but not with {case.fails_with!r}")
    if cell.verdict != "not-run":
        release = dict(cell.versions)[canonicalize_name(case.package)]
        differs += [
            word for figure in case.figures if figure.is_about(release, good=good) for word in _differs(figure, cell)
        ]
    return replace(cell, case=case.name, expected="pass" if good else "fail", differs=tuple(differs))


def _differs(figure: Figure, cell: Cell) -> Iterator[str]:
    read = reading(figure, cell.record)
    if read is None:
        yield f"{figure.name} was not read, expected {exact(figure.expected)}"
    elif abs(read - figure.expected) > figure.within:
        left, right = compared(read, figure.expected)
        allowed = f"± {exact(figure.within)}" if figure.within else "to the byte"
        yield f"{figure.name} {left}, expected {right} {allowed} ({figure.source})"


def reading(figure: Figure, record: TestRecord | None) -> int | None:
    if record is None:
        return None
    if figure.block:
        return max((block.peak for block in record.blocks if block.name == figure.block), default=None)
    found = highest(record.results, figure.check)
    return found.measured if found else None
