"""What streamed chunks take on the card and what their copies cost, for all pairs of n_persist and n_buffer at once.

`Residency` in closed form: what is on the card is always a run of successive chunks, because a chunk comes when its
block needs it, or the one that runs before, and the farthest one goes first. It needs numpy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.pace import Links

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Held:
    """By the states of one pair, block by block: what `walk` adds to what blocks take themselves."""

    level: int
    """Before the first streamed chunk comes, over that of a card that holds all states."""
    forward: Ints
    """Streamed weights while the block goes forward."""
    backward: Ints
    """While it goes backward, and the gradients of later blocks that stay."""
    stay: Ints
    """Its own."""
    all_stay: int
    streamed_gradients: int


@dataclass(frozen=True)
class Copies:
    """Of one pair or of several, block by block, in seconds: what `step_seconds` adds to what blocks compute."""

    waits: tuple[Floats, Floats]
    """In which nothing is computed, on the way forth and back."""
    comes: tuple[Floats, Floats]
    leaves: Floats
    """On the way back."""
    streamed_gradients: Ints
    all_gradients: int


class Streams:
    """All admissible pairs that have the numbers that are fixed, in the order of n_persist, then of n_buffer."""

    def __init__(self, layout: Layout, links: Links, n_persist: int | None = None, n_buffer: int | None = None) -> None:
        chunks = layout.chunks
        if [chunk.block for chunk in chunks] != sorted(chunk.block for chunk in chunks):
            raise ValueError("the chunks of a layout are in the order of their blocks; those of this one are not")
        self._links = links
        self._weights = _sums([chunk.weights for chunk in chunks])
        self._gradients = _sums([chunk.gradients for chunk in chunks])
        self._states = _sums([chunk.weights + chunk.optimizer for chunk in chunks])
        counts = _sums([len(numbers) for numbers in layout.of_blocks])
        self._first, self._past = counts[:-1], counts[1:]
        self.persist, self.buffer = self._admissible(n_persist, n_buffer)

    def _admissible(self, n_persist: int | None, n_buffer: int | None) -> tuple[Ints, Ints]:
        chunks = len(self._weights) - 1
        persist = np.arange(chunks + 1) if n_persist is None else np.array([n_persist])
        fewest = np.max(self._past - self._starts(persist), axis=1, initial=0)
        buffer = np.arange(chunks + 1) if n_buffer is None else np.array([n_buffer])
        rows, columns = np.nonzero((buffer >= fewest[:, None]) & (buffer <= chunks - persist[:, None]))
        return persist[rows], buffer[columns]

    def __len__(self) -> int:
        return len(self.persist)

    def _starts(self, persist: Ints) -> Ints:
        """The first streamed chunk of each block, or where the block ends."""
        return np.clip(persist[..., None], self._first, self._past)

    def _turns(self, pairs: Ints) -> Ints:
        """The first chunk that is still there when the way back begins."""
        return np.maximum(self.persist[pairs], len(self._weights) - 1 - self.buffer[pairs])

    def _both(self, pairs: Ints) -> Bools:
        """Whether there is room for a block's chunks beside those of the next one. Not for the last one, and then for
        one before the first, so that it can be asked for both neighbours."""
        count = self._past - self._starts(self.persist[pairs])
        both = count[:, :-1] + count[:, 1:] <= self.buffer[pairs, None]
        return np.pad(both, ((0, 0), (0, 2)))

    def level(self, pairs: Ints) -> Ints:
        """Of the states before the first streamed chunk comes, over that of a card that holds all states."""
        level: Ints = self._states[self.persist[pairs]] - self._states[-1]
        return level

    def forward(self, pairs: Ints) -> Ints:
        """The streamed weights that are there while each block goes forward."""
        persist, buffer = self.persist[pairs, None], self.buffer[pairs, None]
        past = np.where(self._both(pairs)[:, :-1], np.append(self._past[1:], 0), self._past)
        high = np.maximum(past, persist)
        weights: Ints = self._weights[high] - self._weights[np.maximum(high - buffer, persist)]
        return weights

    def backward(self, pairs: Ints) -> Ints:
        """While it goes backward, and the gradients of later blocks that stay."""
        persist, both = self.persist[pairs, None], np.roll(self._both(pairs), 1, axis=1)[:, :-1]
        low = np.where(both, np.append(0, self._first[:-1]), self._first)
        low = np.maximum(np.minimum(low, self._turns(pairs)[:, None]), persist)
        weights = self._weights[np.maximum(self._past, persist)] - self._weights[low]
        held: Ints = weights + self._gradients[persist] - self._gradients[np.minimum(self._past, persist)]
        return held

    def stay(self, pairs: Ints) -> Ints:
        """The gradients of each block itself that stay."""
        persist = self.persist[pairs, None]
        own: Ints = self._gradients[np.minimum(self._past, persist)] - self._gradients[np.minimum(self._first, persist)]
        return own

    def at_end(self, pairs: Ints) -> Ints:
        """All gradients that stay, when all blocks have gone backward."""
        gradients: Ints = self._gradients[self.persist[pairs]]
        return gradients

    @property
    def all_gradients(self) -> int:
        return int(self._gradients[-1])

    def held(self, pair: int) -> Held:
        pairs, persist = np.array([pair]), int(self.persist[pair])
        return Held(
            level=int(self.level(pairs)[0]),
            forward=self.forward(pairs)[0],
            backward=self.backward(pairs)[0],
            stay=self.stay(pairs)[0],
            all_stay=int(self._gradients[persist]),
            streamed_gradients=int(self._gradients[-1] - self._gradients[persist]),
        )

    def copies(self, pairs: Ints) -> Copies:
        start, turn, both = self._starts(self.persist[pairs]), self._turns(pairs)[:, None], self._both(pairs)
        next_beside, beside = both[:, :-1], np.roll(both, 1, axis=1)[:, :-1]
        forth = (self._weights[self._past] - self._weights[start]) / self._links.to_card
        back = (self._weights[np.clip(turn, start, self._past)] - self._weights[start]) / self._links.to_card
        return Copies(
            waits=(forth * ~beside, back * ~next_beside),
            comes=(np.roll(forth, -1, axis=1) * next_beside, np.roll(back, 1, axis=1) * beside),
            leaves=(self._gradients[self._past] - self._gradients[start]) / self._links.to_host,
            streamed_gradients=self._gradients[-1] - self._gradients[self.persist[pairs]],
            all_gradients=int(self._gradients[-1]),
        )


def _sums(numbers: list[int]) -> Ints:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.array(numbers, dtype=np.int64))])
