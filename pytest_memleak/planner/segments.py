"""Peaks of all ways to give blocks their modes, at once: what `walk` says of each.

Blocks of one mode follow each other. So where a mode begins and ends says how high the level is at each of its blocks,
and a table over both holds the highest of them; the peak of a step is that of a few tables. It needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.paces import Paces
from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.streams import Held, Ints
from pytest_memleak.planner.triples import ORDER, SWAPPED, Triples, running_sums

_LOWEST = np.iinfo(np.int64).min // 4
"""Lower than any level, and far from where sums of such overflow."""


@dataclass(frozen=True)
class Point:
    """The level somewhere in the step: a part that depends on where swapping ends, one on where offloading does, and
    one on where checkpointing does."""

    swap: Ints
    offload: Ints
    checkpoint: Ints
    least: Ints
    """In place of the first two, if any block swaps that is better off with it."""


class Segments:
    """Of one profile."""

    def __init__(self, profile: Profile, links: Links) -> None:
        self.pace = Paces(profile, links)
        self._profile = profile
        blocks = range(len(profile.blocks))
        self.blocks = len(profile.blocks)
        costs = [[profile.blocks[i][Mode.NONE if mode is Mode.SWAP else mode] for i in blocks] for mode in ORDER]
        self._saved = np.array([profile.saved(block) for block in blocks], dtype=np.int64)
        self._forward_peaks = np.array([[cost.forward.peak for cost in row] for row in costs], dtype=np.int64)
        self._backward_peaks = np.array([[cost.backward.peak for cost in row] for row in costs], dtype=np.int64)
        self._with_gradients = np.array([[cost.with_gradients for cost in row] for row in costs], dtype=np.int64)
        self._holds = {
            first: ranges(np.array([[cost.holds.get(first, 0) for cost in row] for row in costs], dtype=np.int64))
            for first in sorted({0, *profile.shared})
        }
        grown = np.array([[cost.forward.grown for cost in row] for row in costs], dtype=np.int64)
        self._net = running_sums(
            grown + np.array([[cost.backward.grown for cost in row] for row in costs], dtype=np.int64)
        )
        grown[0] -= self._saved
        self._grown = running_sums(grown)
        """What blocks up to each hold, were all of that mode: when they have gone forward, what is swapped being away,
        and when they have gone backward, too."""

    def peaks(self, triples: Triples, held: Held) -> Ints:
        """As `walk` has them."""
        profile, grown, net = self._profile, self._grown, self._net
        start = profile.base + held.level
        gone = start + profile.before.grown  # what blocks share has come, and has gone again
        shared = self._shared(triples)
        before = gone + profile.all_shared
        forth, back, first_forth, first_back = self._tables(held)
        swap, offload, checkpoint = triples.swap, triples.offload, triples.checkpoint
        # What modes add to the level at a mode's first block, less what its table has of the blocks before that one.
        ahead = [np.zeros_like(swap), (grown[0] - grown[1])[swap]]
        ahead.append(ahead[1] + (grown[1] - grown[2])[offload])
        ahead.append(ahead[2] + (grown[2] - grown[3])[checkpoint])
        # What they add once the blocks of the mode, and those behind, have gone backward; less the same.
        behind = [np.full_like(swap, net[3, -1])]
        behind.insert(0, behind[0] + (net[2] - net[3])[checkpoint])
        behind.insert(0, behind[0] + (net[1] - net[2])[offload])
        behind.insert(0, behind[0] + (net[0] - net[1])[swap])
        after = gone + sum(shared.values()) + ahead[3] + grown[3, -1] + profile.after.peak + held.forward[-1]
        peak: Ints = np.maximum(after, start + profile.before.peak)
        # The first block that does not swap has a table of its own: what the one before it swapped is still there.
        begins = (np.zeros_like(swap), swap + 1, offload + (offload == swap), checkpoint + (checkpoint == swap))
        ends = (swap, offload, checkpoint, np.full_like(swap, self.blocks))
        for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            np.maximum(peak, before + ahead[row] + forth[row, begin, end], out=peak)
        first = triples.first_unswapped()
        np.maximum(peak, before + first_forth[first, swap], out=peak)
        turn = np.full_like(swap, gone + profile.after.grown)
        for lowest, part in shared.items():  # it is there until this block has gone backward, and so are those before
            turn += part
            for row, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                level = turn + ahead[row] + behind[row]
                np.maximum(peak, level + back[row, np.maximum(begin, lowest), end], out=peak)
            level = turn + np.choose(first, behind) + first_back[first, swap]
            np.maximum(peak, np.where(swap >= lowest, level, _LOWEST), out=peak)
        end = gone + profile.after.grown + behind[0] + held.all_stay
        np.maximum(peak, end + max(profile.end.peak, profile.end.grown + self._of_optimizer(held)), out=peak)
        return peak

    def _shared(self, triples: Triples) -> dict[int, Ints]:
        """What blocks hold of what they share, for the way back, by the first block that is given it."""
        edges = (np.zeros_like(triples.swap), *triples.edges(), np.full_like(triples.swap, self.blocks))
        spans = [(row, edges[row], edges[row + 1]) for row in range(len(ORDER))]
        return {first: np.max([table[span] for span in spans], axis=0) for first, table in self._holds.items()}

    def _tables(self, held: Held) -> tuple[Ints, Ints, Ints, Ints]:
        """The highest levels on the way forth and back, of each mode from any block up to any other one; and those at
        each block, were it the first one that does not swap."""
        shape = np.zeros((len(ORDER), 1), dtype=np.int64)
        beside = np.append(0, self._saved[:-1])
        forth = self._grown[:, :-1] + self._forward_peaks + held.forward + SWAPPED * beside
        stays = np.minimum(held.stay, self._with_gradients - self._backward_peaks)
        level = self._grown[:, 1:] - self._net[:, 1:] + held.backward + SWAPPED * (self._saved + beside)
        back = level + self._backward_peaks + stays
        less = (self._grown[0] - self._grown)[:, :-1] + beside
        nowhere = shape + _LOWEST
        first_forth = np.concatenate([forth + less, nowhere], axis=1)
        first_back = np.concatenate([back + less, nowhere], axis=1)
        return ranges(forth), ranges(back), first_forth, first_back

    def _of_optimizer(self, held: Held) -> int:
        trained = held.all_stay + held.streamed_gradients + self._profile.rest_gradients
        return self._profile.optimizer.peak * (trained - held.streamed_gradients) // trained if trained else 0

    def before_blocks(self) -> int:
        """The highest level there, with all states on the card."""
        return self._profile.base + self._profile.before.peak

    def after_blocks(self) -> Point:
        """The level there that is reached whatever is streamed."""
        profile = self._profile
        return _point(np.diff(self._grown), profile.base + profile.before.grown + profile.after.peak)

    def at_forward(self, block: int) -> Point:
        """The same while a block goes forward."""
        held = np.diff(self._grown)
        held[0, max(block - 1, 0) : block] += self._saved[max(block - 1, 0) : block]
        held[:, block] = self._forward_peaks[:, block]
        held[:, block + 1 :] = 0
        return _point(held, self._profile.base + self._profile.before.grown + self._profile.all_shared)

    def at_backward(self, block: int) -> Point:
        """The same while a block goes backward. For gradients that stay, `beside_gradients` is to be added."""
        profile, peaks = self._profile, self._backward_peaks
        earlier, later = np.diff(self._grown), np.diff(self._net)
        own = (earlier + peaks)[:, block]
        earlier[0, max(block - 1, 0) : block] += self._saved[max(block - 1, 0) : block]
        own[0] += self._saved[block]
        held = np.concatenate([earlier[:, :block], own[:, None], later[:, block + 1 :]], axis=1)
        return _point(held, profile.base + profile.before.grown + profile.after.grown)

    def beside_gradients(self, block: int, stay: Ints) -> Ints:
        """By how much they make a block's peak higher, in whichever mode."""
        more: Ints = np.minimum(stay, (self._with_gradients - self._backward_peaks)[:, block].min())
        return more

    def at_end(self) -> Point:
        """The same when all blocks have gone backward."""
        profile = self._profile
        around = profile.base + profile.before.grown + profile.after.grown + profile.end.peak
        return _point(np.diff(self._net), around)

    def at_optimizer(self) -> Point:
        """The same when the optimizer's step begins. What that takes itself, `beside_optimizer`, is to be added."""
        profile = self._profile
        around = profile.base + profile.before.grown + profile.after.grown + profile.end.grown
        return _point(np.diff(self._net), around)

    def beside_optimizer(self, stay: Ints, all_gradients: int) -> Ints:
        """By the gradients that stay. Products of bytes do not fit into 64 bits, and a bound that is short of a byte
        has thousands of plans looked at in vain."""
        peak, rest = self._profile.optimizer.peak, self._profile.rest_gradients
        trained = max(1, all_gradients + rest)
        different, places = np.unique(stay, return_inverse=True)
        taken = np.array([peak * (one + rest) // trained for one in different.tolist()], dtype=np.int64)
        return taken[places]

    def most_needy(self) -> int:
        """The block that needs the most to go backward, in whichever mode."""
        return int(self._backward_peaks.min(axis=0).argmax())


def _point(held: Ints, around: int) -> Point:
    sums, least = running_sums(held), running_sums(held[:2].min(axis=0))
    return Point(sums[0] - sums[1], sums[1] - sums[2], sums[2] - sums[3] + (sums[3, -1] + around), least - sums[2])


def ranges(rows: Ints) -> Ints:
    """The highest number of each row from a place up to another one."""
    length = rows.shape[1]
    place = np.arange(length)
    apart = np.where(place >= place[:, None], rows[:, None, :], _LOWEST)
    table = np.full((len(rows), length + 2, length + 1), _LOWEST)
    table[:, :length, 1:] = np.maximum.accumulate(apart, axis=2)
    return table
