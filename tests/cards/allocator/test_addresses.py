"""Where segments lie: what was seen on an H200, see also test_replay."""

from __future__ import annotations

import random

import pytest

from pytest_memleak.cards.allocator.addresses import CHUNK, CONTEXT, TOP, Driver
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


class Plain:
    """The same rules, written down without a thought for the time it takes."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, int]] = []  # from where to where, the newest last
        self.taken: dict[int, int] = {}
        for size, used in CONTEXT:
            self.taken[self.new_chunk(size)] = used

    def take(self, size: int) -> int:
        for begin, end in reversed(self.chunks):
            fitting = [(stop - start, start) for start, stop in self.free(begin, end) if stop - start >= size]
            if fitting:
                address = min(fitting)[1]
                break
        else:
            address = self.new_chunk(-(-size // CHUNK) * CHUNK)
        self.taken[address] = size
        return address

    def give(self, address: int) -> None:
        del self.taken[address]
        self.chunks = [
            (begin, end) for begin, end in self.chunks if any(begin <= segment < end for segment in self.taken)
        ]

    def new_chunk(self, size: int) -> int:
        upper = TOP
        for begin, end in [*sorted(self.chunks, reverse=True), (0, 0)]:
            if upper - end > size:
                self.chunks.append((upper - size, upper))
                return upper - size
            upper = begin
        raise AssertionError("there is no end of space")

    def free(self, begin: int, end: int) -> list[tuple[int, int]]:
        found = []
        for address in sorted(segment for segment in self.taken if begin <= segment < end):
            found.append((begin, address))
            begin = address + self.taken[address]
        return [span for span in [*found, (begin, end)] if span[1] > span[0]]


@pytest.mark.parametrize("seed", range(3))
def test_many_segments_that_come_and_go(seed: int) -> None:
    rng = random.Random(seed)
    driver, plain = Driver(), Plain()
    alive: dict[int, int] = {}
    for step in range(600):
        if alive and rng.random() < (0.3 if step < 300 else 0.6):
            address = rng.choice(sorted(alive))
            driver.give(address, alive.pop(address))
            plain.give(address)
        else:
            size = rng.choice((2, 2, 20, 22, 40, 64, 200)) * MIB
            address = driver.take(size)
            assert address == plain.take(size)
            alive[address] = size
