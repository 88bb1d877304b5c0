"""One test and the run's baseline: what it takes of the card, held against what is recorded of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import pytest
import torch

from pytest_memleak.cards.card import Card
from pytest_memleak.checks.baseline import is_known, judge_baseline, own_peaks, unless_rounded
from pytest_memleak.hooks.baselines import IN_FORCE
from pytest_memleak.hooks.wider_memory import WiderMemory, levels
from pytest_memleak.insides import fixtures_in_use, fixtures_named, own_id
from pytest_memleak.measurement import Readings
from pytest_memleak.plan import Cap
from pytest_memleak.ranks import world
from pytest_memleak.records.baselines import Entry, Key
from pytest_memleak.records.baselines.entry import card_of, minor_of, place_of
from pytest_memleak.records.record import CheckResult


class BaselineOfTest:
    def __init__(self, item: pytest.Item, card: Card, cap: Cap | None, wider: WiderMemory) -> None:
        self.entry: Entry | None = None
        """What is to be recorded; None until its body has returned, and where its peak is not known."""
        self._item = item
        self._card = card
        self._cap = cap
        self._wider = wider
        self._in_force = item.config.stash[IN_FORCE]
        self._rank = found.rank if (found := world.current()) is not None else None
        self._held_before: Mapping[str, int] = {}

    @cached_property
    def _key(self) -> Key:
        info = self._card.info(self._cap)
        return Key(own_id(self._item), info.backend, card_of(info.name, info.cap), minor_of(torch.__version__))

    @cached_property
    def recorded(self) -> Mapping[str, int] | None:
        """By device of this process; None if there is no entry."""
        entry = self._in_force.baseline.get(self._key)
        if entry is None:
            return None
        devices = self._card.info(self._cap).devices
        peaks = {device: entry.peaks.get(place_of(device, self._rank)) for device in devices}
        return {device: peak for device, peak in peaks.items() if peak is not None}

    def begin(self) -> None:
        """Before its fixtures are set up."""
        brought = self._wider.of(fixtures_named(self._item))
        held = levels(self._card.gauges())
        self._held_before = {device: level - brought.get(device, 0) for device, level in held.items()}

    def limit_of(self, device: str) -> int | None:
        """About what may be allocated there in all; None where nothing is recorded. Only for a look at who holds it."""
        if self.recorded is None or device not in self._held_before:
            return None
        allowed = self._in_force.terms.allowed(self._card.backend, self.recorded.get(device, 0))
        return allowed + self._held_before[device]

    def judge(
        self, runs: Sequence[Readings], devices: Iterable[str], doubts: Sequence[str], made: Mapping[str, int]
    ) -> list[CheckResult]:
        """`made`: by device, workspaces that were there for the test to find, whether or not it needs any."""
        terms, backend = self._in_force.terms, self._card.backend
        found = own_peaks(runs, list(devices), self._wider.of(fixtures_in_use(self._item)))
        if self.recorded is not None:
            found = [replace(own, rounding=own.rounding + made.get(own.device, 0)) for own in found]
        peaks = unless_rounded(found, self.recorded or {}, terms, backend)
        if is_known(peaks, doubts):
            known = self.recorded or {}
            worth = {place_of(own.device, self._rank): own.bytes for own in peaks if own.bytes or own.device in known}
            self.entry = Entry(self._key, {}).with_peaks(worth)
        return judge_baseline(peaks, self.recorded, terms, backend, doubts)
