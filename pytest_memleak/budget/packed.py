"""What bitsandbytes makes of a weight, in bytes. Checked on 0.50.2."""

BLOCK, ABSMAX, TABLE = 64, 4, 64
"""4-bit state without nesting: an fp32 absmax for each 64 numbers of a weight, and for each weight a table of 16 fp32
numbers."""


def four_bit_bytes(numel: int) -> int:
    return -(-numel // 2) + -(-numel // BLOCK) * ABSMAX + TABLE


def eight_bit_bytes(numel: int, rows: int) -> int:
    return numel + 4 * rows
