"""Whether a test fits on a card now: arithmetic on what the driver tells and what this user's runs tell each other.

Bytes of a card are ours (of a process in the ledger), or others'. What others have is not given out. Where the driver
names processes by the numbers that they have here, it is known; in most containers it does not, and then it is what is
in use beyond ours: known exactly when none of our tests runs, and kept in bounds while some do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_memleak.workers.driver import Device
from pytest_memleak.workers.holders import Hold, Holder
from pytest_memleak.workers.need import Bytes, Need

CONTEXT = 512 * 1024**2
"""What a process takes of a card for itself before its first tensor, presumed: 500 to 600 MiB on H200s."""


@dataclass(frozen=True)
class Foreign:
    """What others than our processes have of a card."""

    bytes: int
    certain: bool
    ours: Mapping[int, int]
    """What each of our processes really has, where the driver tells."""
    strangers: Mapping[int, int]
    """What each of the others has, likewise."""


class Card:
    """One card in one turn. What is costly to know is asked for when it decides."""

    def __init__(
        self,
        name: str,
        device: Device,
        used: int,
        listed: Callable[[], Mapping[int, int] | None],
        me: Holder,
        others: Sequence[Holder],
        owner: Callable[[int, frozenset[int]], int | None],
    ) -> None:
        """`owner`: which of our processes one that the driver names belongs to, if any: its children are its."""
        self.name = name
        self.device = device
        self._used = used
        self._listed = listed
        self._me = me
        self._owner = owner
        self.others = [other for other in others if other.of(device.key).most or self._waits(other)]
        self._holds = [(other.pid, other.of(device.key)) for other in others]

    def _waits(self, other: Holder) -> bool:
        return other.want is not None and self.device.key in other.want.among

    @property
    def idle(self) -> int:
        """What this process itself has already."""
        return self._me.of(self.device.key).idle

    @property
    def spoken_for(self) -> int:
        """What other processes of ours have, or may take."""
        return sum(hold.most for _, hold in self._holds)

    @property
    def running(self) -> bool:
        """Whether a test of another process runs on it."""
        return any(hold.claim for _, hold in self._holds)

    def claim(self, need: Need, beside: bool) -> int | None:
        """What this process claims for a test with that need; None while it does not fit.

        `beside`: the test runs in other processes, and what this one has is not a part of its need.
        """
        if isinstance(need, Bytes):
            # If all that is in use beyond what we keep between tests were others', and it fits, nobody has to be asked.
            worst = Foreign(max(0, self._used - self._idle_of_all), False, {}, {})
            if (claim := self._claim(need, beside, worst)) is not None:
                return claim
        return self._claim(need, beside, self.foreign)

    def known_foreign(self, now: float) -> tuple[int | None, float]:
        """What others than our processes have, and when that was certain: now, or when one of ours last knew."""
        if "foreign" in self.__dict__ and self.foreign.certain:
            return self.foreign.bytes, now
        if not self.running:
            return max(0, self._used - self._idle_of_all), now
        newest = self._newest()
        return (None, 0.0) if newest is None else (newest.foreign, newest.known_at)

    def could_ever(self, need: Bytes) -> bool:
        """Whether it is large enough, were nobody else there."""
        return CONTEXT + need.bytes <= self.device.total

    def is_awaited_by(self, waiting: Holder) -> bool:
        """Whether another process waits for it, and will have its part once the tests that run now have ended."""
        return self._waits(waiting) and self.will_fit(waiting)

    def will_fit(self, waiting: Holder) -> bool:
        """Whether another process will have what it waits for of this card once the tests that run now have ended."""
        others = self._idle_of_all - waiting.of(self.device.key).idle
        return waiting.want is not None and waiting.want.need <= self.device.total - self.foreign.bytes - others

    def is_kept_from(self, need: int) -> bool:
        """Whether that would fit, were it not for what our own processes keep between tests."""
        room = self.device.total - self.foreign.bytes
        return room - self._idle_of_others < need <= room

    def least(self, need: Need, beside: bool) -> int:
        """What a claim takes at least, whoever else is there."""
        if not isinstance(need, Bytes):
            return 0
        return self.idle + CONTEXT + need.bytes if beside else max(self.idle, CONTEXT + need.bytes)

    @functools.cached_property
    def foreign(self) -> Foreign:
        holds = [*self._holds, (self._me.pid, self._me.of(self.device.key))]
        if not any(hold.most for _, hold in holds):
            return Foreign(self._used, True, {}, self._listed() or {})
        listed = self._listed()
        pids = frozenset(pid for pid, _ in holds)
        with_context = {pid for pid, hold in holds if hold.idle}
        if listed is not None and with_context <= listed.keys():
            ours: dict[int, int] = {}
            strangers: dict[int, int] = {}
            for pid, taken in listed.items():
                owner = self._owner(pid, pids)
                whose, key = (strangers, pid) if owner is None else (ours, owner)
                whose[key] = whose.get(key, 0) + taken
            return Foreign(max(0, self._used - sum(ours.values())), True, ours, strangers)
        low = max(0, self._used - self.spoken_for - self.idle)
        high = max(0, self._used - self._idle_of_all)
        if low == high:
            return Foreign(high, True, {}, {})
        known = self._newest()
        bytes_ = high if known is None or known.foreign is None else min(max(known.foreign, low), high)
        return Foreign(bytes_, False, {}, {})

    def _newest(self) -> Hold | None:
        """What one of our processes knew last of the others."""
        holds = [*(hold for _, hold in self._holds), self._me.of(self.device.key)]
        return max((hold for hold in holds if hold.foreign is not None), key=lambda hold: hold.known_at, default=None)

    def _claim(self, need: Need, beside: bool, foreign: Foreign) -> int | None:
        not_others = self.device.total - foreign.bytes
        has = [max(hold.most, foreign.ours.get(pid, 0)) for pid, hold in self._holds]
        if isinstance(need, Bytes):
            claim = self.least(need, beside)
        else:
            kept = sum(hold.idle if hold.claim else all_ for all_, (_, hold) in zip(has, self._holds, strict=True))
            claim = max(min(not_others // need.parts, not_others - kept), self.idle, 1)
        return claim if claim <= not_others - sum(has) else None

    @property
    def _idle_of_others(self) -> int:
        return sum(hold.idle for _, hold in self._holds)

    @property
    def _idle_of_all(self) -> int:
        return self._idle_of_others + self.idle
