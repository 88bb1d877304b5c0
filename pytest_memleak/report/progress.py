"""The line that shows a test's memory while it runs: its words, and how it is drawn below the line pytest is on.

Only text and escape sequences; who writes them, and when, is in `hooks.progress`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from pytest_memleak.budget.sizes import format_size

AFTER = 2.0
"""Seconds that a test has to run before its line comes: what is over sooner is not waited for."""


@dataclass(frozen=True)
class Progress:
    """What is known of a test while it runs. Of host memory the bytes are growth, as in its limit."""

    test: str
    seconds: float
    now: int
    peak: int
    limit: int | None = None
    device: str = ""
    """Named where there are several."""
    host: bool = False
    predicted: bool = False


def line(progress: Progress, columns: int) -> str:
    """``memleak: test_load 12 s · 1.2 GiB now · peak 2.1 GiB of 4 GiB allowed (53 %)``, cut to the columns.

    The numbers are what the line is for: the test's name is the first to be cut.
    """
    numbers = f" {_time(progress.seconds)} · {_levels(progress)}"
    room = columns - _width("memleak: ") - _width(numbers)
    return _cut(f"memleak: {_cut(_printable(progress.test), max(room, 12))}{numbers}", columns)


def drawn(text: str, column: int) -> str:
    """Writes the text on the line below, and goes back to where the cursor was.

    By steps, and not by a position that the terminal saved: on the last row the line feed scrolls all lines, and a
    saved position would then be on another one.
    """
    return f"\n\r\x1b[K{text}\x1b[A\x1b[{column + 1}G"


def erased(column: int) -> str:
    return drawn("", column)


def _levels(progress: Progress) -> str:
    where = f" on {progress.device}" if progress.device else ""
    grown = "host memory grown by " if progress.host else ""
    notes = ["predicted"] if progress.predicted else []
    allowed = ""
    if progress.limit:
        allowed = f" of {format_size(progress.limit)} allowed"
        notes.insert(0, f"{round(100 * progress.peak / progress.limit)} %")
    in_brackets = f" ({', '.join(notes)})" if notes else ""
    return f"{grown}{format_size(progress.now)} now{where} · peak {format_size(progress.peak)}{allowed}{in_brackets}"


def _time(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _width(text: str) -> int:
    """Columns of a terminal: two for what is wide in East Asia, none for an accent on what is before it."""
    return sum(_columns(letter) for letter in text)


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "FW" else 1


def _cut(text: str, columns: int) -> str:
    if _width(text) <= columns:
        return text
    kept, width = "", 0
    for letter in text:
        width += _columns(letter)
        if width > columns - 1:
            break
        kept += letter
    return f"{kept}…" if columns > 0 else ""
