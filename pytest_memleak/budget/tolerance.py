"""How far a peak may lie above the one that is recorded before it counts as higher: ``2%``, ``1MiB``, ``2% + 1MiB``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from pytest_memleak.budget.sizes import format_size, parse_size, shown
from pytest_memleak.errors import BadInput

_PERCENT = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,6})?)\s*%")
_MIB = 1024**2


@dataclass(frozen=True)
class Tolerance:
    percent: Fraction = Fraction(0)
    bytes: int = 0

    def above(self, recorded: int) -> int:
        """In bytes, of a recorded peak."""
        return self.bytes + int(recorded * self.percent / 100)

    def __str__(self) -> str:
        parts = [f"{float(self.percent):g}%"] if self.percent else []
        parts += [format_size(self.bytes)] if self.bytes or not parts else []
        return " + ".join(parts)


NONE = Tolerance()
"""Of a simulated card: its numbers are the same on every machine, to the byte."""
OF_A_CARD = Tolerance(Fraction(2), 2 * _MIB)
"""Of a real one: which kernels its libraries choose, and what of a freed block a request is given as a whole."""
OF_THE_CPU = Tolerance(Fraction(5), _MIB)
"""Kernels take scratch memory for each thread, and a machine has as many as it has cores."""

DEFAULTS = {"simulated": NONE, "real": OF_A_CARD, "cpu": OF_THE_CPU}
"""By backend."""


def parse_tolerance(text: str) -> Tolerance:
    percent, size = Fraction(0), 0
    seen: set[str] = set()
    for part in text.split("+"):
        match = _PERCENT.fullmatch(part.strip())
        kind = "percentage" if match else "size"
        if kind in seen:
            raise BadInput(f"{shown(text)} has more than one {kind}: a tolerance is one of each at most, as 2% + 1MiB")
        seen.add(kind)
        if match:
            percent = Fraction(match[1])
        else:
            try:
                size = parse_size(part, zero=True)
            except BadInput:
                raise BadInput(
                    f"{shown(text)} is no tolerance: it is a percentage, a size or both, as 2%, 1MiB, 2% + 1MiB, 0"
                ) from None
    return Tolerance(percent, size)
