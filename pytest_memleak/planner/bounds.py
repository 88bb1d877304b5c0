"""How fast, and how small, plans can be at best: which of them are worth a look. It needs numpy.

A bound is never worse than any plan that it stands for, so what is left out because of one could not have been chosen.
It goes by a few points of the step at which what blocks hold is a sum over them, as their seconds are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pytest_memleak.planner.paces import mean
from pytest_memleak.planner.segments import Point, Segments, ranges
from pytest_memleak.planner.streams import Bools, Floats, Ints, Streams
from pytest_memleak.planner.triples import Triples

ENDLESS = int(np.iinfo(np.int64).max // 8)
"""Bytes. No level comes near, and no sum with a few of them overflows."""
NEVER = 1e300
"""Seconds."""


@dataclass(frozen=True)
class Place:
    """In a step with one kind of batch."""

    segments: Segments
    where: str
    block: int = -1

    def point(self) -> Point:
        if self.where == "after":
            return self.segments.after_blocks()
        if self.where == "end":
            return self.segments.at_end()
        if self.where == "optimizer":
            return self.segments.at_optimizer()
        return (self.segments.at_forward if self.where == "forward" else self.segments.at_backward)(self.block)

    def held(self, forward: Ints, backward: Ints, stay: Ints, end: Ints, all_gradients: int) -> Ints:
        """By the states that come and go, of each pair."""
        if self.where == "end":
            return end
        if self.where == "optimizer":
            return end + self.segments.beside_optimizer(end, all_gradients)
        if self.where != "backward":
            held: Ints = forward[:, self.block]
            return held
        return backward[:, self.block] + self.segments.beside_gradients(self.block, stay[:, self.block])


class Ends:
    """The blocks at which others cease to swap, to offload and to be checkpointed: a, b and d here."""

    def __init__(self, segments: Sequence[Segments], fixed: Mapping[str, int]) -> None:
        self.all = np.arange(segments[0].blocks + 1)
        self.n_checkpoint = fixed.get("n_checkpoint")
        self.b_with_d = self._fits(self.n_checkpoint)
        self.a_with_b = self._fits(fixed.get("n_offload"))
        if "n_swap" in fixed:
            self.a_with_b &= self.all[:, None] == fixed["n_swap"]
        self.one_a = "n_swap" in fixed or "n_offload" in fixed
        """No more than one a goes with a b."""
        self.before = max(one.before_blocks() for one in segments)
        self.places: list[Place] = []
        self.points: list[Point] = []
        self.falling: list[Ints] = []
        self.lowest: list[Ints] = []
        for one in segments:
            # Where the peak is, most likely: what is held is the most at the turn, and gradients that stay at the end.
            for block in {self.all[-1] - 1, 0, one.most_needy()}:
                self.look_at(Place(one, "backward", int(block)))
            self.look_at(Place(one, "after"))
            self.look_at(Place(one, "end"))
            self.look_at(Place(one, "optimizer"))

    def look_at(self, place: Place) -> None:
        point = place.point()
        self.places.append(place)
        self.points.append(point)
        # The more is checkpointed the less is held. Where not, what ends earlier counts as if it held as little.
        self.falling.append(-np.minimum.accumulate(point.checkpoint))
        self.lowest.append(-ranges(-point.checkpoint[None])[0])

    def _fits(self, count: int | None) -> Bools:
        """Whether so many blocks are between one end and another."""
        between = self.all - self.all[:, None]
        fits: Bools = between >= 0 if count is None else between == count
        return fits


class Bounds:
    """Of some pairs of n_persist and n_buffer: of each, or of groups that have an n_persist in common. Then it goes by
    the memory of the one with the fewest buffers, and by the seconds of the one with the most."""

    def __init__(self, segments: Sequence[Segments], streams: Streams, ends: Ends, fewest: Ints, most: Ints) -> None:
        self._ends = ends
        level = streams.level(fewest)
        forward, backward, stay = streams.forward(fewest), streams.backward(fewest), streams.stay(fewest)
        end = streams.at_end(fewest)
        gradients = streams.all_gradients
        self._held = [level + place.held(forward, backward, stay, end, gradients) for place in ends.places]
        self._before = level + ends.before
        copies = streams.copies(most)
        sums = mean([one.pace.sums(copies) for one in segments])
        around = mean([one.pace.around(copies) for one in segments])
        self._a = sums[:, 0] - sums[:, 1]
        self._a[:, -1] += sum(one.pace.turn_seconds for one in segments) / len(segments)
        self._b = sums[:, 1] - sums[:, 2] + (around + sums[:, 3, -1])[:, None]
        self._d = sums[:, 2] - sums[:, 3]
        """A plan's seconds are these, added up, and more if a block that does not swap runs beside one that does."""
        self._until_b = self._b + self._best_a()
        self._from_d = np.minimum.accumulate(self._d[:, ::-1], axis=1)[:, ::-1]
        """The least of all d from there on."""

    def _best_a(self) -> Floats:
        """The least that any a adds that goes with each b."""
        if not self._ends.one_a:
            return np.minimum.accumulate(self._a, axis=1)
        only, any_fits = np.argmax(self._ends.a_with_b, axis=0), self._ends.a_with_b.any(axis=0)
        best: Floats = np.where(any_fits, self._a[:, only], NEVER)
        return best

    def seconds(self, limit: int) -> Floats:
        """The least of plans with a peak of no more than that."""
        first = self._ends.all
        for point, falling, held in zip(self._ends.points, self._ends.falling, self._held, strict=True):
            first = np.maximum(first, np.searchsorted(falling, point.least - (limit - held)[:, None]))
        if self._ends.n_checkpoint is None:
            rest = _taken(self._from_d, first)
        else:
            only = self._ends.all + self._ends.n_checkpoint
            rest = np.where(first <= only, _taken(self._d, np.minimum(only, len(only))), NEVER)
        least: Floats = (self._until_b + rest).min(axis=1)
        least[self._before > limit] = NEVER
        return least

    def peaks(self, below: float) -> Ints:
        """The least of plans that take less seconds."""
        left, most = below - self._until_b, self._before[:, None]
        if self._ends.n_checkpoint is None:
            first, past = self._ends.all, _count_below(self._from_d, left)
        else:
            first = np.minimum(self._ends.all + self._ends.n_checkpoint, len(self._ends.all))
            past = np.where(_taken(self._d, first) < left, np.minimum(first + 1, len(self._ends.all)), first)
        for point, lowest, held in zip(self._ends.points, self._ends.lowest, self._held, strict=True):
            most = np.maximum(most, point.least + lowest[first, past] + held[:, None])
        peaks: Ints = np.minimum(most.min(axis=1), ENDLESS)
        return peaks

    def worth(self, place: int, below: float, limit: int) -> tuple[Ints, Ints, Floats, Ints]:
        """All b with their d, and bounds of their seconds and of their peaks."""
        seconds, level = self._until_b[place][:, None] + self._d[place], self._before[place]
        for point, held in zip(self._ends.points, self._held, strict=True):
            level = np.maximum(level, point.least[:, None] + point.checkpoint + held[place])
        b, d = np.nonzero(self._ends.b_with_d & (level <= limit) & (seconds < below))
        return b, d, seconds[b, d], level[b, d]

    def triples(self, place: int, b: Ints, d: Ints, below: float, limit: int) -> Triples:
        """With all a that go with them and may be fast and small enough."""
        seconds = self._a[place][:, None] + (self._b[place][b] + self._d[place][d])
        a, chosen = np.nonzero(self._ends.a_with_b[:, b] & (seconds < below))
        b, d = b[chosen], d[chosen]
        for point, held in zip(self._ends.points, self._held, strict=True):
            fits = point.swap[a] + point.offload[b] + point.checkpoint[d] <= limit - held[place]
            a, b, d = a[fits], b[fits], d[fits]
        return Triples(a, b, d)


def _taken(rows: Floats, places: Ints) -> Floats:
    """From each row; behind its end there is nothing."""
    longer = np.pad(rows, ((0, 0), (0, 1)), constant_values=NEVER)
    return np.take_along_axis(longer, np.broadcast_to(places, rows.shape), axis=1)


def _count_below(rows: Floats, numbers: Floats) -> Ints:
    """How many of each row, which is in ascending order, are less than each number: `searchsorted` has but one row."""
    length = rows.shape[1]
    count = np.zeros(numbers.shape, dtype=np.int64)
    for bit in reversed(range(length.bit_length())):
        more = count + (1 << bit)
        less = np.take_along_axis(rows, np.minimum(more, length) - 1, axis=1) < numbers
        count = np.where((more <= length) & less, more, count)
    return count
