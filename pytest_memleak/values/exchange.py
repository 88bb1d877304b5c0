"""How ranks tell each other what they hold without meeting in a collective, in which a rank that failed is missed.

Each rank waits for what rank 0 says, compares, and says what it found; rank 0 waits for that. So rank 0 does not leave,
and perhaps the store with it, before all have read. Whoever does not speak is waited for only so long.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pytest_memleak.errors import Inconclusive
from pytest_memleak.values.inside import default_store

PATIENCE = 60.0
"""Seconds to wait for each of the other ranks."""

_FAILED = "failed"


@dataclass
class Told:
    """What this rank learned."""

    rank: int
    size: int
    found: list[str] = field(default_factory=list)
    """On rank 0 by all others, on any other by itself."""
    compared: int = 0
    silent: list[str] = field(default_factory=list)
    """Why some others, or rank 0, said nothing that could be compared."""


class Exchange:
    """Of one test, or one call. `name`: the same on all ranks, and never used before."""

    def __init__(self, name: str, patience: float | None = None) -> None:
        import torch.distributed as distributed

        store = default_store()
        if store is None:
            raise Inconclusive("there is no process group: give the test several ranks, @pytest.mark.ranks(2)")
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        if self.size < 2:
            raise Inconclusive("there is one rank only: give the test several, @pytest.mark.ranks(2)")
        if distributed.get_backend() == "fake":
            raise Inconclusive(
                "this rank is played on a simulated card, and its peers are not there: run the test on CPUs "
                "(--gpu-backend=cpu) or on real cards"
            )
        self._store = store
        self._name = f"pytest-memleak/{name}"
        self._patience = PATIENCE if patience is None else patience

    def compare(self, mine: Any, with_rank_0: Callable[[Any], tuple[list[str], int]]) -> Told:
        """`with_rank_0` gets what rank 0 said; it gives the differences, and how many tensors were compared."""
        told = Told(self.rank, self.size)
        if self.rank == 0:
            self._say(0, {"holds": mine})
            for rank in range(1, self.size):
                self._heard(told, rank)
            return told
        theirs = self._hear(0, "what it holds")
        if isinstance(theirs, str):
            told.silent.append(theirs)
        else:
            told.found, told.compared = with_rank_0(theirs["holds"])
        self._say(self.rank, {"found": told.found, "compared": told.compared, "silent": told.silent})
        return told

    def failed(self, why: str) -> None:
        """Nothing can be compared with this rank, and nobody is to wait for it."""
        self._say(self.rank, {_FAILED: why})

    def _heard(self, told: Told, rank: int) -> None:
        answer = self._hear(rank, "what it found")
        if isinstance(answer, str):
            told.silent.append(answer)
            return
        told.found += answer["found"]
        told.compared = max(told.compared, answer["compared"])
        told.silent += answer["silent"]

    def _say(self, rank: int, what: Any) -> None:
        try:
            self._store.set(f"{self._name}/{rank}", zlib.compress(json.dumps(what).encode()))
        except RuntimeError as error:  # it is gone with the rank that had it
            raise Inconclusive(f"rank {rank} could not tell the others: {str(error).splitlines()[0]}") from None

    def _hear(self, rank: int, what: str) -> Any:
        """What that rank says, or in words why nothing is to be heard."""
        key = f"{self._name}/{rank}"
        try:
            self._store.wait([key], timedelta(seconds=self._patience))
            said = json.loads(zlib.decompress(self._store.get(key)))
        except RuntimeError as error:  # that of a time-out, or of a store that is gone with its rank
            timed_out = "timeout" in str(error).lower() or "timed out" in str(error).lower()
            why = f"within {self._patience:g} s" if timed_out else f"({str(error).splitlines()[0]})"
            return f"rank {rank} did not say {what} {why}"
        if _FAILED in said:
            return f"rank {rank} has nothing to compare: {said[_FAILED]}"
        return said
