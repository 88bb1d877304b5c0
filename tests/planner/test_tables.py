"""What the search goes by: tables that say what the walk through a step says, and bounds that are never worse."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from pytest_memleak.planner.bounds import ENDLESS, NEVER, Bounds, Ends, Place
from pytest_memleak.planner.completing import admissible
from pytest_memleak.planner.estimate import estimate_peak
from pytest_memleak.planner.layout import Chunk, Layout
from pytest_memleak.planner.pace import Links, step_seconds
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.residency import Moves, Residency
from pytest_memleak.planner.segments import Segments
from pytest_memleak.planner.streams import Streams
from pytest_memleak.planner.triples import Triples
from tests.planner.fed import all_triples, odd_layout, odd_links, odd_profile

COUNTS = [(1,), (1, 2), (0, 1, 3)]


def plans_of(triples: Triples, persist: int, buffer: int) -> list[Plan]:
    ends = zip(triples.swap.tolist(), triples.offload.tolist(), triples.checkpoint.tolist(), strict=True)
    return [Plan(persist, buffer, a, d - b, b - a) for a, b, d in ends]


def pairs_of(streams: Streams) -> list[tuple[int, int]]:
    return list(zip(streams.persist.tolist(), streams.buffer.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_tables_say_of_every_plan_what_the_walk_says(seed: int) -> None:
    random = Random(seed)
    layout, links = odd_layout(random, 1 + seed % 5, COUNTS[seed % 3]), odd_links(random)
    profile = odd_profile(random, layout.blocks)
    streams, segments, triples = Streams(layout, links), Segments(profile, links), all_triples(layout.blocks)
    for number, (persist, buffer) in enumerate(pairs_of(streams)):
        plans = plans_of(triples, persist, buffer)
        peaks = segments.peaks(triples, streams.held(number))
        assert peaks.tolist() == [estimate_peak([profile], layout, plan) for plan in plans]
        seconds = segments.pace.seconds(triples, streams.copies(np.array([number])))
        assert seconds.tolist() == pytest.approx([step_seconds(profile, layout, plan, links) for plan in plans])


@pytest.mark.parametrize("seed", range(9))
def test_bounds_are_never_worse_than_a_plan(seed: int) -> None:
    random = Random(100 + seed)
    layout, links = odd_layout(random, 2 + seed % 4, COUNTS[seed % 3]), odd_links(random)
    segments = [Segments(odd_profile(random, layout.blocks), links) for _ in range(1 + seed % 2)]
    streams, ends, triples = Streams(layout, links), Ends(segments, {}), all_triples(layout.blocks)
    for block in range(layout.blocks):
        for where in ("forward", "backward"):
            ends.look_at(Place(segments[0], where, block))
    every = np.arange(len(streams))
    bounds = Bounds(segments, streams, ends, every, every)
    # The same of groups: the memory of the fewest buffers, the seconds of the most.
    fewest, most = (
        np.searchsorted(streams.persist, streams.persist),
        np.searchsorted(streams.persist, streams.persist, side="right"),
    )
    grouped = Bounds(segments, streams, ends, fewest, most - 1)
    for pair in every.tolist():
        peaks = np.max([one.peaks(triples, streams.held(pair)) for one in segments], axis=0)
        seconds = np.mean(
            [one.pace.seconds(triples, streams.copies(every[pair : pair + 1])) for one in segments], axis=0
        )
        b, d, least_seconds, least_peaks = bounds.worth(pair, NEVER, ENDLESS)
        for kept_b, kept_d, quickest, smallest in zip(b, d, least_seconds, least_peaks, strict=True):
            same = (triples.offload == kept_b) & (triples.checkpoint == kept_d)
            assert quickest <= seconds[same].min() + 1e-9
            assert smallest <= peaks[same].min()
        for of in (bounds, grouped):
            for limit in {*peaks.tolist()}:
                assert of.seconds(limit)[pair] <= seconds[peaks <= limit].min() + 1e-9
            for below in {*(seconds + 1e-6).tolist()}:
                assert of.peaks(below)[pair] <= peaks[seconds < below].min()
        limit, below = int(np.median(peaks)), float(np.median(seconds)) + 1e-6
        b, d, _, _ = bounds.worth(pair, below, limit)
        left = bounds.triples(pair, b, d, below, limit)
        kept = set(zip(left.swap.tolist(), left.offload.tolist(), left.checkpoint.tolist(), strict=True))
        for number in np.flatnonzero((peaks <= limit) & (seconds < below - 1e-9)):
            one = triples[np.array([number])]
            assert (int(one.swap[0]), int(one.offload[0]), int(one.checkpoint[0])) in kept


@pytest.mark.parametrize("seed", range(20))
def test_streams_hold_and_move_what_residency_does(seed: int) -> None:
    """Of more chunks than the tables above have."""
    random = Random(200 + seed)
    layout = odd_layout(random, random.randrange(1, 12), COUNTS[seed % 3])
    streams = Streams(layout, Links(1.0, 1.0, 1.0))
    every = np.arange(len(streams))
    chunks, copies = layout.chunks, streams.copies(every)
    pairs = pairs_of(streams)
    count = range(len(chunks) + 1)
    assert pairs == [(p, n) for p in count for n in count if not admissible(layout, Plan(p, n))]

    def weights(numbers: tuple[int, ...]) -> int:
        return sum(chunks[number].weights for number in numbers)

    for pair in random.sample(range(len(pairs)), min(25, len(pairs))):
        residency = Residency(layout, Plan(*pairs[pair]))
        held = streams.held(pair)
        level, gradients = 0, 0

        def move(moves: Moves, way: int, block: int, pair: int = pair) -> int:
            assert copies.waits[way][pair, block] == weights(moves.fetched)
            assert copies.comes[way][pair, block] == weights(moves.ahead)
            return weights(moves.fetched) + weights(moves.ahead) - weights(moves.dropped)

        for block in range(layout.blocks):
            level += move(residency.forward(block), 0, block)
            assert held.forward[block] == level
        for block in reversed(range(layout.blocks)):
            level += move(residency.backward(block), 1, block)
            assert held.backward[block] == level + gradients
            stay = sum(chunks[n].gradients for n in layout.of_blocks[block] if n < pairs[pair][0])
            assert held.stay[block] == stay
            gradients += stay


def test_chunks_out_of_order_are_refused() -> None:
    layout = Layout(2, (Chunk(1, (), 1, 0, 0), Chunk(0, (), 1, 0, 0)))
    with pytest.raises(ValueError, match="in the order of their blocks"):
        Streams(layout, Links(1.0, 1.0, 1.0))
