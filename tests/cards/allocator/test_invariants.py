"""Whatever is allocated and released in whatever order, the books agree."""

from __future__ import annotations

import itertools
import random
import sys
import threading

import pytest

from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.allocator.refusal import CardFull
from pytest_memleak.cards.allocator.rules import BLOCK, MIB, SEGMENT_STEP
from pytest_memleak.cards.allocator.settings import parse

GIB = 1024 * MIB
SETTINGS = (
    "",
    "max_split_size_mb:48",
    "expandable_segments:True",
    "roundup_power2_divisions:8",
    "garbage_collection_threshold:0.5,max_split_size_mb:64",
)


def check(allocator: Allocator, live: dict[int, int]) -> None:
    used: dict[int, int] = {}
    reserved = 0
    ends: list[tuple[int, int]] = []
    for segment in allocator.segments():
        expected = segment[0].address
        before = None
        for block in segment:
            assert block.address == expected, "a gap or an overlap in a segment"
            assert block.previous is before
            assert block.size > 0
            assert block.size % BLOCK == 0
            if before is not None:
                assert before.used or block.used or before.mapped != block.mapped, "two free neighbours"
            if block.used:
                assert block.mapped
                used[block.address] = block.size
            if block.mapped:
                reserved += block.size
            before, expected = block, block.address + block.size
        assert segment[-1].next is None
        ends.append((segment[0].address, expected))
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends)), "segments overlap"
    assert used.keys() == live.keys()
    assert all(size >= live[address] for address, size in used.items())
    assert allocator.allocated == sum(used.values())
    assert allocator.requested == sum(live.values())
    assert allocator.reserved == reserved
    assert reserved % SEGMENT_STEP == 0
    assert allocator.cap is None or reserved <= allocator.cap
    assert reserved <= allocator.total - allocator.others
    check_figures(allocator.memory_stats_as_nested_dict(), len(live))


def check_figures(stats: dict[str, dict[str, dict[str, int]]], live: int) -> None:
    assert stats["allocation"]["all"]["current"] == live
    for name, pools in stats.items():
        if not isinstance(pools, dict) or "all" not in pools:
            continue
        for metrics in pools.values():
            assert metrics["current"] == metrics["allocated"] - metrics["freed"], name
            assert 0 <= metrics["current"] <= metrics["peak"], name
        for metric in ("current", "allocated", "freed"):
            assert pools["all"][metric] == pools["small_pool"][metric] + pools["large_pool"][metric], name
        assert pools["all"]["peak"] <= pools["small_pool"]["peak"] + pools["large_pool"]["peak"], name


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("cap", [None, 2 * GIB])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_mix_keeps_the_books(settings: str, cap: int | None, seed: int) -> None:
    chance = random.Random(seed)
    allocator = Allocator(6 * GIB, cap=cap, others=GIB, settings=parse(settings))
    live: dict[int, int] = {}
    refused = 0
    for turn in range(1500):
        if live and chance.random() < 0.45:
            address = chance.choice(list(live))
            allocator.free(address)
            del live[address]
        else:
            size = int(2 ** chance.uniform(0, 28))
            try:
                live[allocator.alloc(size, chance.choice((0, 0, 1)))] = size
            except CardFull:
                refused += 1
                allocator.free(live_address := max(live, key=lambda address: live[address]))
                del live[live_address]
        if chance.random() < 0.01:
            allocator.empty_cache()
        if turn % 25 == 0:
            check(allocator, live)
    assert refused or cap is None, "the cap was never reached: the mix shows too little"
    for address in live:
        allocator.free(address)
    check(allocator, {})
    allocator.empty_cache()
    check(allocator, {})
    assert allocator.reserved == 0
    assert allocator.segments() == []


def test_threads_that_allocate_and_release_at_once_keep_the_books() -> None:
    allocator = Allocator(80 * GIB)
    failures: list[BaseException] = []
    held: list[dict[int, int]] = [{} for _ in range(4)]

    def work(index: int) -> None:
        chance, live = random.Random(index), held[index]
        try:
            for _ in range(1500):
                if live and chance.random() < 0.5:
                    address = chance.choice(list(live))
                    del live[address]
                    allocator.free(address)
                else:
                    size = chance.randrange(1, 4 * MIB)
                    live[allocator.alloc(size)] = size
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test's own thread is to raise it
            failures.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(held))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert failures == []
    check(allocator, {address: size for live in held for address, size in live.items()})
