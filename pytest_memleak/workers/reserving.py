"""A test's part of one card or of several: taken when all of it is free, waited for until then, given back afterwards.

Everything is decided in one turn of the ledger, for all cards at once: a test has all that it needs or nothing.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers import own, processes, queueing, words
from pytest_memleak.workers.driver import Device, Driver
from pytest_memleak.workers.fitting import Card
from pytest_memleak.workers.holders import Hold, Holder, Want
from pytest_memleak.workers.ledger import Ledger
from pytest_memleak.workers.need import Bytes, Need, Share
from pytest_memleak.workers.visible import Visible

POLL = 0.1
_SHORT = 5.0
"""Seconds for which a turn is waited for at least: each takes milliseconds, unless the driver hangs in one."""
_STANDSTILL = 10
"""So many looks in a row must find that nobody can go on, until somebody gives up."""


@dataclass(frozen=True)
class Taken:
    names: tuple[str, ...]
    """The cards, as CUDA_VISIBLE_DEVICES names them."""
    waited: float = 0.0
    because: str = ""
    """Who had them, when it began to wait."""

    @property
    def waited_for(self) -> str:
        """In words; nothing if the test did not wait."""
        return f"waited {self.waited:.1f} s; then: {self.because}" if self.because else ""


class Reservations:
    """What this process holds of the cards, and what it takes of them for one test at a time."""

    def __init__(
        self, driver: Driver | None, seen: Sequence[str] = (), worker: str = "", ledger: Ledger | None = None
    ) -> None:
        """`seen`: the keys of the cards that this process's torch sees, in its order."""
        self._driver = driver
        self._seen = tuple(seen)
        self._worker = worker
        self._ledger = ledger or Ledger()
        self._mine = Holder(os.getpid(), worker)

    def take(
        self,
        test: str,
        need: Need,
        among: Sequence[Visible],
        patience: float,
        count: int = 1,
        beside: bool = False,
    ) -> Taken:
        """Waits for `count` of these cards. `beside`: it is for other processes, which this one starts."""
        if any(one.device is None for one in among) or self._driver is None:
            need = Share(1)  # nobody tells how large they are: each is had as a whole
        want = Want(test, 0, count, tuple(one.key for one in among), time.monotonic())
        try:
            return self._wait(need, want, among, patience, beside)
        except BaseException:  # interrupts and time-outs of other plugins too: nobody is to wait for this process
            self._end()
            raise

    def _wait(self, need: Need, want: Want, among: Sequence[Visible], patience: float, beside: bool) -> Taken:
        because, stuck = "", 0
        while True:
            with self._turn(want.test, want.since + patience - time.monotonic()) as others:
                cards = self._look(among, others)
                waited = time.monotonic() - want.since
                ahead = self._ahead(want, cards, others)
                if taken := self._chosen(cards, need, want, beside, ahead):
                    self._claim(want.test, cards, taken)
                    names = tuple(one.name for one in among if one.key in taken)
                    return Taken(names, waited if because else 0.0, because)
                want = replace(want, need=max(card.least(need, beside) for card in cards))
                self._mine = replace(self._mine, want=want)
                self._ledger.write(self._mine)
                who = words.who_has(cards, ahead)
                because = because or who
                stuck = stuck + 1 if queueing.at_a_standstill(cards, want) else 0
                if why := _why_in_vain(stuck, waited, patience):
                    raise Unavailable(words.in_vain(need, want.count, who, waited, why))
            time.sleep(POLL * (1 + random.random()))  # nobody tells when a card is free; not all ask at the same time

    def give_back(self) -> None:
        """The test is over. What this process still has afterwards, others are told."""
        try:
            own.let_go()
        finally:
            self._end()

    def close(self) -> None:
        self._ledger.close()

    def _turn(self, test: str, patience: float) -> AbstractContextManager[list[Holder]]:
        if self._mine.pid != os.getpid():
            self._mine = Holder(os.getpid(), self._worker)  # a child that was forked has nothing of its parent's
        who = f"{self._mine.name}, with {test}" if test else self._mine.name
        return self._ledger.turn(who, max(patience, _SHORT))

    def _end(self) -> None:
        """This process neither has anything for a test nor waits. If that cannot be told, nothing is told of it at all:
        what it keeps, the others then see as strangers' memory.
        """
        try:
            test = self._mine.test
            cards = {key: replace(hold, claim=0) for key, hold in self._mine.cards.items()}
            self._mine = replace(self._mine, test="", want=None, cards=cards)
            with self._turn(test, _SHORT):
                self._note_held()
                self._ledger.write(self._mine)
        except BaseException as error:
            self._ledger.withdraw()
            if not isinstance(error, Unavailable):
                raise

    def _look(self, among: Sequence[Visible], others: Sequence[Holder]) -> list[Card]:
        self._note_held()
        return [self._card(one, others) for one in among]

    def _card(self, one: Visible, others: Sequence[Holder]) -> Card:
        driver = self._driver
        if driver is None or one.device is None:
            return Card(one.name, Device(one.key, "", 1), 0, lambda: None, self._mine, others, processes.owner)
        used, listed = driver.used(one.key), partial(driver.processes, one.key)
        return Card(one.name, one.device, used, listed, self._mine, others, processes.owner)

    def _ahead(self, want: Want, cards: Sequence[Card], others: Sequence[Holder]) -> Sequence[Holder]:
        """Those that this one does not overtake on its cards."""
        looked_at = {card.device.key: card for card in cards}
        devices = {} if self._driver is None else {device.key: device for device in self._driver.devices()}

        def fits(key: str, other: Holder) -> bool:
            try:
                if key not in looked_at:
                    looked_at[key] = self._card(Visible(key, devices.get(key)), others)
            except Unavailable:
                return False  # that card has been lost, and this test does not want it
            return looked_at[key].will_fit(other)

        return queueing.ahead(want, others, fits)

    def _chosen(
        self, cards: Sequence[Card], need: Need, want: Want, beside: bool, ahead: Sequence[Holder]
    ) -> Mapping[str, int]:
        """What is taken of which cards, the emptiest; nothing while those that have room are too few."""
        if isinstance(need, Bytes) and sum(card.could_ever(need) for card in cards) < want.count:
            raise Unavailable(words.too_large(need, min(cards, key=lambda card: card.device.total)))
        fitting: dict[str, int] = {}
        for card in sorted(cards, key=lambda card: card.spoken_for):
            if len(fitting) == want.count or any(map(card.is_awaited_by, ahead)):
                continue
            if (claim := card.claim(need, beside)) is not None:
                fitting[card.device.key] = claim
        return fitting if len(fitting) == want.count else {}

    def _claim(self, test: str, cards: Sequence[Card], taken: Mapping[str, int]) -> None:
        now = time.monotonic()
        holds = dict(self._mine.cards)
        for card in cards:
            key = card.device.key
            foreign, known_at = card.known_foreign(now)
            known = replace(holds.get(key, Hold()), foreign=foreign, known_at=known_at)
            holds[key] = replace(known, claim=taken.get(key, 0))
        self._mine = replace(self._mine, test=test, want=None, cards=holds)
        self._ledger.write(self._mine)

    def _note_held(self) -> None:
        held = self._held()
        keys = self._mine.cards.keys() | held.keys()
        cards = {key: replace(self._mine.of(key), idle=held.get(key, 0)) for key in keys}
        self._mine = replace(self._mine, cards=cards)

    def _held(self) -> Mapping[str, int]:
        return own.held(self._seen)


def _why_in_vain(stuck: int, waited: float, patience: float) -> str:
    if stuck >= _STANDSTILL:
        return (
            "All of these wait as well, and none can go on with what the others keep: let wider fixtures hold less, "
            "or use fewer workers"
        )
    if waited > patience:
        return "Raise --memleak-card-timeout if that is not too long, or use fewer workers"
    return ""
