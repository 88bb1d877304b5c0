"""Seconds of all ways to give blocks their modes, at once: what `step_seconds` says of each. It needs numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pytest_memleak.planner.pace import Links, computing, moved
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.streams import Copies, Floats
from pytest_memleak.planner.triples import ORDER, SWAPPED, Triples, running_sums


class Paces:
    """Of one profile."""

    def __init__(self, profile: Profile, links: Links) -> None:
        self._profile = profile
        self._links = links
        self._blocks = len(profile.blocks)
        blocks = range(self._blocks)
        seconds = np.array([[computing(profile, block, mode, links) for block in blocks] for mode in ORDER])
        self._forth, self._back = seconds[..., 0], seconds[..., 1]
        copied = np.array([moved(profile, block) for block in blocks], dtype=np.float64)
        self._out, self._again = copied / links.to_host, copied / links.to_card

    def seconds(self, triples: Triples, copies: Copies) -> Floats:
        """As `step_seconds` has them, with the copies of one pair."""
        beside = self._slots(copies, np.ones((len(ORDER), 1)))
        alone = self._slots(copies, SWAPPED)
        more = np.zeros((len(ORDER), self._blocks + 1)) + self.turn_seconds
        more[:, :-1] = (beside - alone)[0]
        added = running_sums(alone)[0]
        swap, offload, checkpoint = (added[row] - added[row + 1] for row in range(3))
        total: Floats = swap[triples.swap] + offload[triples.offload] + checkpoint[triples.checkpoint]
        total += more[triples.first_unswapped(), triples.swap]
        total += added[3, -1] + self.around(copies)
        return total

    def sums(self, copies: Copies) -> Floats:
        """The seconds of blocks up to each, were all of that mode, for each pair."""
        return running_sums(self._slots(copies, SWAPPED))

    def _slots(self, copies: Copies, swapped: npt.NDArray[Any]) -> Floats:
        """Of each pair, mode and block, forward and backward, where the block before is one that swaps or not."""
        out, again = np.append(0.0, self._out[:-1]) * swapped, np.append(0.0, self._again[:-1]) * swapped
        comes, comes_back = (times[:, None] for times in copies.comes)
        slots: Floats = np.maximum(np.maximum(self._forth, out), comes)
        slots += np.maximum(np.maximum(self._back, comes_back + again), copies.leaves[:, None])
        slots += (copies.waits[0] + copies.waits[1])[:, None]
        return slots

    def around(self, copies: Copies) -> Floats:
        """The seconds in which no block runs."""
        profile = self._profile
        trained = copies.all_gradients + profile.rest_gradients
        here = (trained - copies.streamed_gradients) / trained if trained else np.zeros(1)
        on_host = copies.streamed_gradients / self._links.host_optimizer
        optimizing: Floats = np.maximum(profile.optimizer.seconds * here, on_host)
        return optimizing + (profile.before.seconds + profile.after.seconds + profile.end.seconds)

    @property
    def turn_seconds(self) -> float:
        """If the last block swaps: nothing runs beside its copies."""
        return float(self._out[-1] + self._again[-1])


def mean(kinds: list[Floats]) -> Floats:
    """Over kinds of batches, as `mean_seconds` has it."""
    total: Floats = np.sum(kinds, axis=0) / len(kinds)
    return total
