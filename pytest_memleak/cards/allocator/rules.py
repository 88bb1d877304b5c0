"""The caching allocator's constants, and how it rounds: c10/cuda/CUDACachingAllocator.cpp, torch 2.6 to 2.13."""

from __future__ import annotations

MIB = 2**20

BLOCK = 512
"""Every block is a multiple of it."""
SMALL = MIB
"""The largest request that goes to the small pool; a larger block is only split where more than this remains."""
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
"""What a request over `SMALL` and under `OWN_SEGMENT` gets its first segment of; `large_segment_size_mb` changes it."""
OWN_SEGMENT = 10 * MIB
SEGMENT_STEP = 2 * MIB
UNLIMITED = 2**64 - 1
"""`max_split_size` where none was set."""

# Divisions of powers of two are set per interval: up to 1 MiB, up to 2 MiB … 32 GiB and beyond.
INTERVALS = 16
_FIRST_INTERVAL = MIB.bit_length()


def rounded(size: int, divisions: tuple[int, ...] | None) -> int:
    """The block that a request of `size` bytes asks for; `divisions` as in `roundup_power2_divisions`."""
    if divisions is None or size < BLOCK:
        return max(BLOCK, -(-size // BLOCK) * BLOCK)
    parts = divisions[min(max(size.bit_length() - _FIRST_INTERVAL, 0), INTERVALS - 1)]
    if parts <= 1 or size <= BLOCK * parts:
        return -(-size // BLOCK) * BLOCK
    if size & (size - 1) == 0:
        return size
    step = (1 << (size.bit_length() - 1)) >> (parts.bit_length() - 1)
    return -(-size // step) * step


def segment_for(block: int, large_segment: int = LARGE_SEGMENT) -> int:
    """The segment that is asked of the card when no cached block fits one of `block` bytes."""
    if block <= SMALL:
        return SMALL_SEGMENT
    if block < OWN_SEGMENT:
        return large_segment
    return -(-block // SEGMENT_STEP) * SEGMENT_STEP
