"""Amounts of memory as people write them, and as reports print them."""

from __future__ import annotations

import re
from fractions import Fraction

from pytest_memleak.errors import BadInput

# Taken at their word: G and GiB are 1024³, GB is 1000³. Only single letters may also be small; "gb" is refused, because
# whoever writes it could mean gigabits, gigabytes or gibibytes. "kB" is how the SI spells 1000 bytes.
_LETTERS = "KMGT"
UNITS: dict[str, int] = {"B": 1, "kB": 1000}
for _power, _letter in enumerate(_LETTERS, start=1):
    UNITS |= {_letter: 1024**_power, _letter.lower(): 1024**_power, f"{_letter}iB": 1024**_power}
    UNITS[f"{_letter}B"] = 1000**_power

ALLOWED = "a size is a number with a unit: 512 or 512B (bytes), 16G or 16GiB (1024³), 16GB (1000³); K, M, G, T likewise"

# No plain number of bytes needs more digits; int() itself refuses some thousands of them.
LONGEST_TEXT = 1000

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")


def parse_size(text: str | int, *, zero: bool = False) -> int:
    """The bytes that `text` stands for, rounded down."""
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise BadInput(f"{text!r} is not a size: {ALLOWED}")
    if isinstance(text, int):
        return check_sign(text, text, zero=zero)
    match = _SIZE.fullmatch(text.strip()) if len(text) <= LONGEST_TEXT else None
    if match is None:
        raise BadInput(f"{shown(text)} is not a size: {ALLOWED}")
    number, unit = match.groups()
    return check_sign(int(amount(number, unit, text)), text, zero=zero)


def amount(number: str, unit: str, text: str) -> Fraction:
    """`number` times `unit` in bytes, exactly; `text` is what an error quotes."""
    if unit and unit not in UNITS:
        raise BadInput(f"{shown(text)}: unknown unit {unit!r}{_meant(unit)}; {ALLOWED}")
    if "." in number and unit in ("", "B"):
        raise BadInput(f"{shown(text)}: {number} is not a whole number of bytes; {ALLOWED}")
    return Fraction(number) * UNITS[unit or "B"]


def check_sign(size: int, text: str | int, *, zero: bool) -> int:
    """`size` itself, if it may stand as a limit."""
    if size < 0 or (size == 0 and not zero):
        what, least = "less than zero" if size < 0 else "zero", "zero or more" if zero else "more than zero"
        raise BadInput(f"{shown(text)} comes to {what}: it must be {least} bytes")
    return size


def shown(text: object) -> str:
    """`text` as an error quotes it: whole, unless it is endless."""
    quoted = repr(text)
    return quoted if len(quoted) <= LONGEST_TEXT else f"{quoted[:80]}… ({len(quoted)} characters)"


def format_size(n: int) -> str:
    """``2.001 GiB``: binary units; four digits unless the number is round."""
    sign, size = ("-" if n < 0 else ""), abs(n)
    if size < 1024:
        return f"{sign}{size} B"
    powers = range(1, len(_LETTERS) + 1)
    # What would round to 1024 goes to the next unit: "1.000 GiB" and not "1024 MiB".
    power = next((power for power in powers if round(size / 1024**power) < 1024), len(_LETTERS))
    return f"{sign}{_four_digits(size, 1024**power)} {_LETTERS[power - 1]}iB"


def _four_digits(size: int, unit: int) -> str:
    if size % unit == 0:
        return str(size // unit)
    digits = [f"{size / unit:.{decimals}f}" for decimals in (3, 2, 1)]
    return next((text for text in digits if len(text) <= 5), f"{size / unit:.0f}")


def format_exact(n: int) -> str:
    """``2.001 GiB (2,148,532,224 B)``, where the last byte matters."""
    return format_size(n) if abs(n) < 1024 else f"{format_size(n)} ({n:,} B)"


def _meant(unit: str) -> str:
    close = [known for known in UNITS if known.casefold() == unit.casefold() and len(known) > 1]
    return f" (did you mean {' or '.join(close)}?)" if close else ""
