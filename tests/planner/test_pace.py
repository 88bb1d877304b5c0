"""Seconds that can be added up by hand: a block takes 1 s forward and 2 s backward, and copies go at 10 bytes/s."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.pace import Links, mean_seconds, step_seconds
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import BlockCost, Profile, Stretch

BLOCKS = 4
LINKS = Links(10.0, 10.0, 10.0)
COMPUTING = BLOCKS * (1.0 + 2.0)


def layout(weights: int = 0, gradients: int = 0) -> Layout:
    return Layout(BLOCKS, tuple(Chunk(block, (), weights, gradients, 0) for block in range(BLOCKS)))


def profile(saves: int = 0, offloads: tuple[float, float] = (0.0, 0.0), optimizer: float = 0.0) -> Profile:
    costs = {
        Mode.NONE: BlockCost(Stretch(saves, saves, 1.0), Stretch(0, -saves, 2.0), 0),
        Mode.CHECKPOINT: BlockCost(Stretch(0, 0, 1.5), Stretch(0, 0, 3.0), 0),
        Mode.OFFLOAD: BlockCost(Stretch(0, 0, offloads[0]), Stretch(0, 0, offloads[1]), 0),
    }
    none = Stretch(0, 0)
    return Profile("text", "fed", 0, none, (costs,) * BLOCKS, none, none, replace(none, seconds=optimizer), rest={})


def seconds(fed: Profile, of: Layout, persist: int, buffer: int, links: Links = LINKS, **modes: int) -> float:
    return step_seconds(fed, of, Plan(persist, buffer, **modes), links)


def test_a_model_that_stays_on_the_card_takes_what_its_parts_take() -> None:
    before, after, end = (Stretch(0, 0, number) for number in (0.25, 0.5, 0.125))
    around = replace(profile(), before=before, after=after, end=end)
    assert seconds(around, layout(100), BLOCKS, 0) == COMPUTING + 0.875


def test_without_room_for_the_next_chunk_each_is_waited_for() -> None:
    """But the last one on the way back: it is still there."""
    assert seconds(profile(), layout(weights=5), 0, 1) == COMPUTING + (4 + 3) * 0.5


def test_chunks_that_come_ahead_take_no_time_unless_they_outlast_the_block() -> None:
    """The first one has no block to come beside."""
    assert seconds(profile(), layout(weights=5), 0, 2) == COMPUTING + 0.5
    # 1.5 s instead of 1 s on the way forth, three times; on the way back the block takes 2 s.
    assert seconds(profile(), layout(weights=15), 0, 2) == COMPUTING + 1.5 + 3 * 0.5
    # 2.5 s instead of 2 s on the way back; the two last chunks are still there then.
    assert seconds(profile(), layout(weights=25), 0, 2) == COMPUTING + 2.5 + 3 * 1.5 + 2 * 0.5


def test_persistent_chunks_are_not_copied() -> None:
    assert seconds(profile(), layout(weights=5), 3, 1) == COMPUTING
    assert seconds(profile(), layout(weights=15), 3, 1) == COMPUTING + 0.5


def test_checkpointed_blocks_take_what_they_took_so() -> None:
    assert seconds(profile(), layout(), BLOCKS, 0, n_checkpoint=3) == COMPUTING + 3 * (0.5 + 1.0)


def test_copies_of_blocks_that_offload_count_once() -> None:
    timed = profile(saves=7, offloads=(1.25, 2.75))
    assert seconds(timed, layout(), BLOCKS, 0, n_offload=2) == COMPUTING + 2 * (0.25 + 0.75)
    links = Links(to_card=5.0, to_host=10.0, host_optimizer=1.0)
    untimed = seconds(profile(saves=7), layout(), BLOCKS, 0, links, n_offload=2)
    assert untimed == pytest.approx(COMPUTING + 2 * (0.7 + 1.4))


def test_what_is_swapped_takes_time_only_where_it_outlasts_the_next_block() -> None:
    assert seconds(profile(saves=8), layout(), BLOCKS, 0, n_swap=3) == COMPUTING
    # 1.5 s beside 1 s on the way forth, and beside 2 s on the way back.
    assert seconds(profile(saves=15), layout(), BLOCKS, 0, n_swap=3) == COMPUTING + 3 * 0.5
    assert seconds(profile(saves=25), layout(), BLOCKS, 0, n_swap=2) == COMPUTING + 2 * (1.5 + 0.5)


def test_nothing_runs_beside_the_copies_of_the_last_block() -> None:
    links = Links(to_card=20.0, to_host=10.0, host_optimizer=1.0)
    assert seconds(profile(saves=8), layout(), BLOCKS, 0, links, n_swap=BLOCKS) == pytest.approx(COMPUTING + 0.8 + 0.4)


def test_what_was_swapped_comes_back_on_the_same_stream_as_weights() -> None:
    """1.5 s and 1.5 s beside 2 s, for the block whose chunk is not there any more."""
    plain = seconds(profile(), layout(weights=15), 0, 2)
    assert seconds(profile(saves=15), layout(weights=15), 0, 2, n_swap=1) == plain + 1.0


def test_a_block_that_saves_less_than_nothing_moves_nothing() -> None:
    assert seconds(profile(saves=-50), layout(), BLOCKS, 0, n_swap=4) == COMPUTING
    assert seconds(profile(saves=-50), layout(), BLOCKS, 0, n_offload=4) == COMPUTING


def test_gradients_leave_beside_their_own_block() -> None:
    links = Links(10.0, 10.0, 1e9)
    assert seconds(profile(), layout(gradients=20), 0, 1, links) == pytest.approx(COMPUTING)
    assert seconds(profile(), layout(gradients=25), 1, 1, links) == pytest.approx(COMPUTING + 3 * 0.5)


def test_the_optimizers_on_card_and_host_run_at_once_after_the_way_back() -> None:
    half_on_card = seconds(profile(optimizer=8.0), layout(gradients=5), 2, 1)
    assert half_on_card == COMPUTING + max(4.0, 1.0)
    slow_host = seconds(profile(optimizer=8.0), layout(gradients=5), 2, 1, Links(10.0, 10.0, 2.0))
    assert slow_host == COMPUTING + max(4.0, 5.0)
    with_rest = seconds(replace(profile(optimizer=8.0), rest={"": 20}), layout(gradients=5), 0, 1)
    assert with_rest == COMPUTING + max(4.0, 2.0)


def test_a_frozen_model_has_no_optimizer() -> None:
    assert seconds(profile(optimizer=8.0), layout(weights=0), BLOCKS, 0) == COMPUTING


def test_kinds_of_batches_count_alike() -> None:
    longer = replace(profile(), before=Stretch(0, 0, 3.0))
    assert mean_seconds([profile(), longer], layout(), Plan(BLOCKS, 0), LINKS) == COMPUTING + 1.5


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_a_speed_is_more_than_nothing(speed: float) -> None:
    with pytest.raises(BadInput, match=r"to_host=.* is no speed"):
        Links(1.0, speed, 1.0)


def test_a_block_that_swaps_has_as_much_to_see_to_as_one_that_offloads() -> None:
    """Its own copies take no time beside the next block, 1 s each way; what its hooks take does."""
    assert seconds(profile(saves=10, offloads=(3.0, 5.0)), layout(), BLOCKS, 0, n_swap=1) == COMPUTING + 1.0 + 2.0
    # Never less than a block that keeps everything.
    assert seconds(profile(saves=10, offloads=(1.5, 2.5)), layout(), BLOCKS, 0, n_swap=1) == COMPUTING
