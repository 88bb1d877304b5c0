"""Sizes worked out by hand from the allocator's rules."""

from __future__ import annotations

import pytest

from pytest_memleak.cards.allocator.rules import INTERVALS, MIB, rounded, segment_for

GIB = 1024 * MIB


@pytest.mark.parametrize(
    ("size", "block"),
    [(1, 512), (511, 512), (512, 512), (513, 1024), (1024, 1024), (MIB - 1, MIB), (MIB + 1, MIB + 512)],
)
def test_a_block_is_a_multiple_of_512_bytes(size: int, block: int) -> None:
    assert rounded(size, None) == block


@pytest.mark.parametrize(
    ("size", "block"),
    [
        # Between 1024 and 2048 four divisions would be 256 apart: too fine, so that multiples of 512 stay.
        (1200, 1536),
        # 4096 … 8192 in four: 5120, 6144, 7168.
        (4097, 5120),
        (5120, 5120),
        (7169, 8192),
        (8192, 8192),
        (3 * MIB + 1, 3 * MIB + MIB // 2),
        (100 * MIB, 112 * MIB),
        (GIB + 1, GIB + GIB // 4),
    ],
)
def test_four_divisions_of_a_power_of_two(size: int, block: int) -> None:
    assert rounded(size, (4,) * INTERVALS) == block


def test_divisions_count_for_sizes_of_their_interval_alone() -> None:
    divisions = (0,) * 5 + (2,) + (0,) * (INTERVALS - 6)
    assert rounded(33 * MIB, divisions) == 48 * MIB
    assert rounded(65 * MIB + 1, divisions) == 65 * MIB + 512
    assert rounded(31 * MIB + 1, divisions) == 31 * MIB + 512
    assert rounded(10**15, (0,) * (INTERVALS - 1) + (1,)) == 10**15 + (-(10**15)) % 512


@pytest.mark.parametrize(
    ("block", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (10 * MIB + 512, 12 * MIB),
        (GIB + 1, GIB + 2 * MIB),
    ],
)
def test_segments(block: int, segment: int) -> None:
    assert segment_for(block) == segment


def test_a_larger_segment_for_the_sizes_between() -> None:
    assert segment_for(2 * MIB, 64 * MIB) == 64 * MIB
    assert segment_for(MIB, 64 * MIB) == 2 * MIB
    assert segment_for(12 * MIB, 64 * MIB) == 12 * MIB
