from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from random import Random

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.completing import KNOBS, admissible, complete
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.plan import Plan


def layout_of(*counts: int) -> Layout:
    """So many chunks each block has."""
    return Layout(
        len(counts), tuple(Chunk(block, (), 1, 1, 2) for block, count in enumerate(counts) for _ in range(count))
    )


LAYOUTS = [
    layout_of(1, 1, 1, 1),
    layout_of(2, 2, 2, 2),
    layout_of(3, 1, 2, 1, 3, 1),
    layout_of(*([1] * 16)),
    layout_of(*Random(1).choices((1, 2, 3), k=13)),
]
LARGE = [layout_of(*([2] * 64)), layout_of(*Random(2).choices((1, 2, 3), k=64))]


def most(layout: Layout, knob: str) -> int:
    return len(layout.chunks) if knob in KNOBS[:2] else layout.blocks


def possible(layout: Layout, given: dict[str, int]) -> bool:
    """By trying what there is of the knobs that decide it."""
    if sum(given.get(name, 0) for name in KNOBS[2:]) > layout.blocks:
        return False
    persist = [given["n_persist"]] if "n_persist" in given else range(len(layout.chunks) + 1)
    buffer = given.get("n_buffer")
    return any(
        buffer is None or layout.fewest_buffers(n) <= buffer <= len(layout.chunks) - n
        for n in persist
    )  # fmt: skip


def check(layout: Layout, given: dict[str, int]) -> None:
    if not possible(layout, given):
        with pytest.raises(BadInput) as raised:
            complete(layout, **given)
        assert any(f"{name}={value}" in str(raised.value) for name, value in given.items())
        return
    plan, sentence = complete(layout, **given)
    assert admissible(layout, plan) == ""
    assert {name: getattr(plan, name) for name in given} == given
    filled = {name: value for name, value in vars(plan).items() if name not in given}
    assert {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", sentence)} == vars(plan)
    assert bool(sentence) == bool(filled)


@pytest.mark.parametrize("layout", [*LAYOUTS, *LARGE], ids=lambda layout: f"{len(layout.chunks)} chunks")
def test_every_value_of_every_knob_is_completed_into_a_plan_that_runs(layout: Layout) -> None:
    for knob in KNOBS:
        for value in range(most(layout, knob) + 1):
            check(layout, {knob: value})


def pairs(layout: Layout) -> Iterator[dict[str, int]]:
    for one, other in combinations(KNOBS, 2):
        for value in range(most(layout, one) + 1):
            for other_value in range(most(layout, other) + 1):
                yield {one: value, other: other_value}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{len(layout.chunks)} chunks")
def test_every_pair_of_knobs_is_completed_or_refused_by_name(layout: Layout) -> None:
    for given in pairs(layout):
        check(layout, given)


@pytest.mark.parametrize("layout", LARGE, ids=lambda layout: f"{len(layout.chunks)} chunks")
def test_pairs_and_more_of_many_blocks_are_completed_or_refused_by_name(layout: Layout) -> None:
    random = Random(3)
    for _ in range(600):
        chosen = random.sample(KNOBS, random.choice((2, 2, 3, 4)))
        check(layout, {knob: random.randrange(most(layout, knob) // random.choice((1, 3)) + 1) for knob in chosen})


def test_what_nothing_was_said_of_is_safe() -> None:
    plan, sentence = complete(layout_of(2, 2, 2, 2))
    assert plan == Plan(n_persist=0, n_buffer=2, n_checkpoint=4)
    assert sentence == (
        "nothing was given; filled in, so that it runs: "
        "n_persist=0, n_buffer=2, n_swap=0, n_checkpoint=4 and n_offload=0"
    )


def test_the_sentence_tells_what_was_filled_in_and_what_was_not() -> None:
    plan, sentence = complete(layout_of(1, 1, 1, 1), n_swap=1, n_offload=2, n_buffer=None)
    assert plan == Plan(0, 1, n_swap=1, n_checkpoint=1, n_offload=2)
    assert sentence == (
        "n_swap=1 and n_offload=2 were given; filled in, so that it runs: n_persist=0, n_buffer=1 and n_checkpoint=1"
    )
    _, sentence = complete(layout_of(1, 1), n_swap=1)
    assert sentence.startswith("n_swap=1 was given; filled in")


def test_a_whole_plan_is_left_as_it_is() -> None:
    given = {"n_persist": 1, "n_buffer": 2, "n_swap": 1, "n_checkpoint": 0, "n_offload": 1}
    assert complete(layout_of(1, 1, 1, 1), **given) == (Plan(**given), "")


def test_fewer_buffers_than_a_block_has_chunks_let_early_blocks_stay() -> None:
    plan, _ = complete(layout_of(1, 3, 1, 2, 1), n_buffer=2)
    assert (plan.n_persist, plan.n_buffer) == (2, 2)
    plan, _ = complete(layout_of(1, 3, 1, 2, 1), n_buffer=0)
    assert (plan.n_persist, plan.n_buffer) == (8, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"n_persist": 1, "n_buffer": 1},
            "n_persist=1 and n_buffer=1 cannot be had together: n_buffer=1 is too few, because with n_persist=1 a "
            "block needs 2 streamed chunks at once: n_buffer from 2 to 5 would do, or a higher n_persist",
        ),
        (
            {"n_persist": 5, "n_buffer": 2},
            "n_persist=5 and n_buffer=2 cannot be had together: n_buffer=2 is more than the 1 chunk that n_persist=5 "
            "leaves to be streamed: n_buffer=1 would do, or a lower n_persist",
        ),
        (
            {"n_persist": 6, "n_buffer": 2},
            "n_persist=6 and n_buffer=2 cannot be had together: n_buffer=2 has nothing to hold, because n_persist=6 "
            "keeps all chunks on the card: n_buffer=0 would do, or a lower n_persist",
        ),
        (
            {"n_swap": 2, "n_offload": 3},
            "n_swap=2 and n_offload=3 cannot be had together: n_swap=2 and n_offload=3 make 5 blocks, and there are 3: "
            "together they may be 3 at most",
        ),
        ({"n_swap": 4}, "n_swap=4 has to be an integer from 0 to 3: there are 3 blocks"),
        ({"n_persist": -1}, "n_persist=-1 has to be an integer from 0 to 6: there are 6 chunks"),
        ({"n_buffer": True}, "n_buffer=True has to be an integer from 0 to 6: there are 6 chunks"),
        (
            {"n_swaps": 1},
            "n_swaps=1: a plan has no such knob, but n_persist, n_buffer, n_swap, n_checkpoint, n_offload",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_what_would_do(given: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput) as raised:
        complete(layout_of(2, 2, 2), **given)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(2, 1), ""),
        (Plan(3, 0, 1, 1, 1), ""),
        (Plan(-1, 1), "n_persist=-1 is less than 0"),
        (Plan(4, 0), "n_persist=4 is more than the 3 chunks of the model"),
        (Plan(0, 0), "n_buffer=0 is too few"),
        (Plan(0, 4), "n_buffer=4 is more than the 3 chunks"),
        (Plan(0, 1, 2, 2), "n_swap=2 and n_checkpoint=2 make 4 blocks, and there are 3: together"),
    ],
)
def test_a_plan_says_why_it_cannot_run(plan: Plan, reason: str) -> None:
    assert admissible(layout_of(1, 1, 1), plan).startswith(reason)
    assert bool(admissible(layout_of(1, 1, 1), plan)) == bool(reason)
