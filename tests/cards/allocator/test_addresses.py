"""Where segments lie: what was seen on an H200, see also test_replay."""

from __future__ import annotations

from pytest_memleak.cards.allocator.addresses import CONTEXT, TOP, Driver
from pytest_memleak.cards.allocator.rules import MIB

CONTEXTS = sum(size for size, _ in CONTEXT)


def below_context(driver: Driver, size: int) -> int:
    """How far below what the context takes the segment lies, in MiB."""
    return (TOP - CONTEXTS - driver.take(size * MIB)) // MIB


def test_small_segments_fill_what_the_context_left() -> None:
    driver = Driver()
    assert driver.take(2 * MIB) == TOP - CONTEXTS + 414 * MIB
    assert driver.take(2 * MIB) == TOP - 24 * MIB


def test_space_grows_downwards_in_steps_of_32_mib() -> None:
    driver = Driver()
    assert below_context(driver, 56) == 64
    assert below_context(driver, 104) == 64 + 128
    # In the rest of the newest chunk, above its first segment.
    assert below_context(driver, 20) == 64 + 128 - 104
    # In the rest of the one before, since the newest has 4 MiB left.
    assert below_context(driver, 8) == 64 - 56


def test_the_smallest_hole_of_a_chunk() -> None:
    driver = Driver()
    addresses = [driver.take(size * MIB) for size in (30, 2, 100, 20)]
    driver.give(addresses[2], 100 * MIB)
    assert driver.take(2 * MIB) == addresses[3] + 20 * MIB


def test_a_gap_is_used_again_only_where_it_is_larger() -> None:
    driver = Driver()
    first, second, third, _ = (driver.take(64 * MIB) for _ in range(4))
    driver.give(second, 64 * MIB)
    assert driver.take(64 * MIB) < third
    driver.give(third, 64 * MIB)
    assert driver.take(64 * MIB) == first - 64 * MIB


def test_two_holes_side_by_side_are_one() -> None:
    driver = Driver()
    kept = driver.take(100 * MIB)
    left = driver.take(10 * MIB)
    right = driver.take(10 * MIB)
    assert (left, right) == (kept + 100 * MIB, kept + 110 * MIB)
    driver.give(right, 10 * MIB)
    driver.give(left, 10 * MIB)
    assert driver.take(28 * MIB) == left


def test_expandable_segments_have_their_own_space() -> None:
    driver = Driver()
    one, two = driver.reserve(100 * MIB), driver.reserve(100 * MIB)
    assert two >= one + 100 * MIB
    assert driver.take(2 * MIB) > two + 100 * MIB
    driver.give(one, 100 * MIB)
