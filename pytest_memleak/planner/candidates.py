"""The fastest of all plans that fit, and the smallest of all that are fast enough. It needs numpy.

A plan is a pair (n_persist and n_buffer: what weights take) and a triple (what becomes of the blocks' tensors). Pairs
are looked at in the order of what they can be at best (`Bounds`), until no other one can be better than what was found;
of a pair only triples that might be. Nearly all plans are never looked at, and none of them could have been chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np

from pytest_memleak.planner.bounds import ENDLESS, NEVER, Bounds, Ends, Place
from pytest_memleak.planner.estimate import walk
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.paces import mean
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.segments import Segments
from pytest_memleak.planner.streams import Copies, Floats, Held, Ints, Streams
from pytest_memleak.planner.triples import Triples

ROUNDING = 1e-9
"""Sums of the same seconds differ by less than this share of them. Plans that do not differ by more are as fast as each
other."""

_GROUPS = 10
"""Of each n_persist, at most."""
_FIRST = 64
_PLACES = 8
"""Of a step, where bounds of levels look. Each takes time."""


@dataclass(frozen=True)
class Candidate:
    plan: Plan
    peak: int
    seconds: float


_Found = tuple["Candidate | None", "Candidate | None"]


class Candidates:
    """All admissible plans that have the numbers that are fixed."""

    def __init__(self, profiles: Sequence[Profile], layout: Layout, links: Links, fixed: Mapping[str, int]) -> None:
        self._profiles, self._layout = profiles, layout
        self._segments = [Segments(profile, links) for profile in profiles]
        self._streams = Streams(layout, links, fixed.get("n_persist"), fixed.get("n_buffer"))
        self._ends = Ends(self._segments, fixed)
        self._groups = self._grouped(1 + len(layout.chunks) // _GROUPS)
        self._look()

    def _grouped(self, size: int) -> list[Ints]:
        """With another buffer nothing is slower, and nothing takes less where `Bounds` look: so it needs but two pairs
        of a group to tell how good the others can be."""
        changes = np.flatnonzero(np.diff(self._streams.persist)) + 1
        together = np.split(np.arange(len(self._streams)), changes)
        return [group[begin : begin + size] for group in together for begin in range(0, len(group), size)]

    def _look(self) -> None:
        self._bounds = self._bounded(*(np.array([group[end] for group in self._groups]) for end in (0, -1)))
        self._inside: dict[int, Bounds] = {}

    def _learn(self, candidate: Candidate) -> bool:
        """To look where this plan has its peak, too: bounds did not see that, and passed what does not fit."""
        peaks = [
            (point.peak, -number, place)
            for number, (profile, one) in enumerate(zip(self._profiles, self._segments, strict=True))
            for point, place in zip(walk(profile, self._layout, candidate.plan), self._places(one), strict=True)
        ]
        place = max(peaks, key=lambda peak: peak[:2])[2]
        if place is None or place in self._ends.places or len(self._ends.places) >= _PLACES * len(self._segments):
            return False
        self._ends.look_at(place)
        self._look()
        return True

    def _places(self, one: Segments) -> list[Place | None]:
        """In the order of a step; none of what depends on no block."""
        forward = [Place(one, "forward", block) for block in range(one.blocks)]
        backward = [Place(one, "backward", block) for block in reversed(range(one.blocks))]
        return [None, *forward, Place(one, "after"), *backward, Place(one, "end"), Place(one, "optimizer")]

    def _bounded(self, fewest: Ints, most: Ints) -> Bounds:
        return Bounds(self._segments, self._streams, self._ends, fewest, most)

    def _ascending(self, bound: Callable[[Bounds], Floats | Ints]) -> Iterator[tuple[float, int, Bounds, int]]:
        """Pairs, each with its bound, those that may be the best first; and where their bounds are. Of a group nothing
        is known but its own bound before it is its turn."""
        waiting = [(number, group, -1) for group, number in enumerate(bound(self._bounds).tolist())]
        heapify(waiting)
        while waiting:
            number, group, place = heappop(waiting)
            if place >= 0:
                yield number, int(self._groups[group][place]), self._inside[group], place
                continue
            pairs = self._groups[group]
            if group not in self._inside:
                self._inside[group] = self._bounded(pairs, pairs)
            for place, number in enumerate(bound(self._inside[group]).tolist()):
                heappush(waiting, (number, group, place))

    def fastest(self, limit: int) -> Candidate | None:
        """With a peak of no more than that."""
        best, below, again = None, NEVER, True
        while again:
            again = False
            for bound, pair, bounds, place in self._ascending(lambda bounds: bounds.seconds(limit)):
                if not bound < below:
                    break
                found, missed = self._fastest_of(pair, bounds, place, below, limit)
                if found:
                    best, below = found, found.seconds * (1 - ROUNDING)
                elif missed and self._learn(missed):
                    again = True
                    break
        return best

    def _fastest_of(self, pair: int, bounds: Bounds, place: int, below: float, limit: int) -> _Found:
        """And the fastest one that does not fit, if many had to be looked at."""
        held, copies = self._streams.held(pair), self._streams.copies(np.array([pair]))
        best: Candidate | None = None
        missed: Candidate | None = None
        b, d, seconds_at_least, _ = bounds.worth(place, below, limit)
        for part in _parts(np.argsort(seconds_at_least)):
            if not seconds_at_least[part[0]] < below:
                break
            triples = bounds.triples(place, b[part], d[part], below, limit)
            seconds = self._seconds(triples, copies)
            order = np.argsort(seconds)
            order = order[: np.searchsorted(seconds[order], below)]
            for some in _parts(order):
                peaks = self._peaks(triples[some], held)
                if (fits := np.flatnonzero(peaks <= limit)).size:
                    best = self._candidate(pair, triples[some], int(fits[0]), peaks, seconds[some])
                    below = best.seconds * (1 - ROUNDING)
                    break
                if not missed and len(some) == _FIRST:
                    missed = self._candidate(pair, triples[some], 0, peaks, seconds[some])
        return best, missed

    def smallest(self, below: float = NEVER) -> Candidate | None:
        """Of those that take less seconds."""
        best, limit, again = None, ENDLESS - 1, True
        while again:
            again = False
            for bound, pair, bounds, place in self._ascending(lambda bounds: bounds.peaks(below)):
                if bound > limit:
                    break
                if found := self._smallest_of(pair, bounds, place, below, limit):
                    best, limit = found, found.peak - 1
                    if again := self._learn(found):
                        break
        return best

    def _smallest_of(self, pair: int, bounds: Bounds, place: int, below: float, limit: int) -> Candidate | None:
        held, copies, best = self._streams.held(pair), self._streams.copies(np.array([pair])), None
        b, d, _, peak_at_least = bounds.worth(place, below, limit)
        for part in _parts(np.argsort(peak_at_least)):
            if peak_at_least[part[0]] > limit:
                break
            triples = bounds.triples(place, b[part], d[part], below, limit)
            seconds = self._seconds(triples, copies)
            quick = np.flatnonzero(seconds < below)
            peaks = self._peaks(triples[quick], held)
            if quick.size and peaks.min() <= limit:
                best = self._candidate(pair, triples[quick], int(peaks.argmin()), peaks, seconds[quick])
                limit = best.peak - 1
        return best

    def _seconds(self, triples: Triples, copies: Copies) -> Floats:
        return mean([segments.pace.seconds(triples, copies) for segments in self._segments])

    def _peaks(self, triples: Triples, held: Held) -> Ints:
        peaks: Ints = np.max([segments.peaks(triples, held) for segments in self._segments], axis=0)
        return peaks

    def _candidate(self, pair: int, triples: Triples, place: int, peaks: Ints, seconds: Floats) -> Candidate:
        a, b, d = (int(ends[place]) for ends in (triples.swap, triples.offload, triples.checkpoint))
        persist, buffer = int(self._streams.persist[pair]), int(self._streams.buffer[pair])
        return Candidate(Plan(persist, buffer, a, d - b, b - a), int(peaks[place]), float(seconds[place]))


def _parts(numbers: Ints) -> Iterator[Ints]:
    """The first ones are likely to settle it."""
    begin, size = 0, _FIRST
    while begin < len(numbers):
        yield numbers[begin : begin + size]
        begin, size = begin + size, size * 4
