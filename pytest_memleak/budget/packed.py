"""What bitsandbytes makes of a weight, in bytes. Checked on 0.50.2."""

from __future__ import annotations

from typing import Any

BLOCK, ABSMAX, TABLE = 64, 4, 64
"""4-bit state without nesting: an fp32 absmax for each 64 numbers of a weight, and for each weight a table of 16 fp32
numbers."""


def four_bit_bytes(numel: int) -> int:
    return -(-numel // 2) + -(-numel // BLOCK) * ABSMAX + TABLE


def eight_bit_bytes(numel: int, rows: int) -> int:
    return numel + 4 * rows


def parametrized_state(module: Any) -> Any:
    """What undoes the packing of a parameter that is no layer's weight, such as experts; None for other modules.

    `module` is the list of parametrizations that holds the packed one. By names, so that looking imports nothing.
    """
    if type(module).__name__ != "ParametrizationList":
        return None
    first = next(iter(vars(module)["_modules"].values()), None)
    return vars(first).get("quant_state") if type(first).__name__ == "Bnb4bitParametrization" else None
