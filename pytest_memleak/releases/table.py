"""Cells as people read them, in a terminal and as Markdown, and as data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.releases.cell import Cell
from pytest_memleak.wording import plural, shortened

SCHEMA = "pytest-memleak-matrix/1"
_ORDER = ("pass", "fail", "inconclusive", "not-run")


def verdict_in_words(cell: Cell) -> str:
    if not cell.expected:
        return cell.verdict
    if cell.verdict == cell.expected:
        return f"{cell.verdict} (as expected)" if cell.fine else f"{cell.verdict} (DIFFERS)"
    return f"{cell.verdict} (EXPECTED {cell.expected})"


def reason_in_words(cell: Cell) -> str:
    parts = [*cell.differs, cell.reason] if cell.expected and not cell.fine else [cell.reason]
    return "; ".join(filter(None, parts))


def as_text(cells: Sequence[Cell], titles: dict[str, str], width: int) -> str:
    """A part for each case, or for each test."""
    blocks = []
    for name, part in _parts(cells).items():
        title = f"{name}: {titles[name]}" if name in titles else name
        blocks.append("\n".join([title, *(f"  {line.rstrip()}" for line in _columns(_rows(part), max(width - 2, 40)))]))
    return "\n\n".join([*blocks, summary(cells)])


def as_markdown(cells: Sequence[Cell], titles: dict[str, str]) -> str:
    lines = []
    for name, part in _parts(cells).items():
        head, *rows = _rows(part)
        lines += [f"### {_escaped(name)}", "", *([_escaped(titles[name]), ""] if name in titles else [])]
        lines += [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]
    return "\n".join([*lines, _escaped(summary(cells)), ""])


def as_json(cells: Sequence[Cell], more: dict[str, Any]) -> bytes:
    document = {"schema": SCHEMA, **more, "cells": [cell.as_json() for cell in cells]}
    return json.dumps(document, indent=1, allow_nan=False).encode("ascii") + b"\n"


def summary(cells: Sequence[Cell]) -> str:
    counts = [f"{many} {verdict}" for verdict in _ORDER if (many := sum(one.verdict == verdict for one in cells))]
    said = f"{plural(len(cells), 'cell')}: {', '.join(counts) or 'nothing was run'}"
    expected = [one for one in cells if one.expected]
    if expected:
        wrong = sum(not one.fine for one in expected)
        said += f"; {wrong} not as expected" if wrong else "; all as expected"
    if stored := [one for one in cells if one.stored]:
        said += (
            f"\n{plural(len(stored), 'cell')} of them from an earlier call that did not come to its end "
            f"(since {min(one.stored for one in stored)}); --fresh runs them anew"
        )
    return said


def _parts(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    parts: dict[str, list[Cell]] = {}
    for cell in cells:
        parts.setdefault(cell.case or cell.test, []).append(cell)
    return parts


def _rows(cells: Sequence[Cell]) -> list[list[str]]:
    packages = list(dict.fromkeys(package for cell in cells for package, _ in cell.versions))
    rows = [[*packages, "verdict", "peak", "reason"]]
    for cell in cells:
        versions = dict(cell.versions)
        peak = "-" if cell.peak is None else format_size(cell.peak)
        how = f" ({_in_short(cell.peak_how)})" if cell.peak_how else ""
        releases = [versions.get(package, "-") for package in packages]
        rows.append([*releases, verdict_in_words(cell), peak + how, reason_in_words(cell)])
    return rows


def _in_short(how: str) -> str:
    """``max_peak, allocated on cuda:0, predicted``: which check it was stands in the JSON."""
    return how.partition(", ")[2] if how.startswith("max_peak, ") else how


def _columns(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """All columns in full, but for the last one, the reason: what of it does not fit is cut in its middle."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    room = max(width - sum(widths) - 2 * len(widths), 40)
    return [
        "  ".join([*(f"{text:<{size}}" for text, size in zip(row, widths, strict=False)), shortened(row[-1], room)])
        for row in rows
    ]


def _line(row: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, row))} |"


def _escaped(text: str) -> str:
    for sign in ("\\", "|", "<", "`", "*", "_"):
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", " ")
