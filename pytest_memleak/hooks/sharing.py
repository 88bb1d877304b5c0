"""In a worker of pytest-xdist: each test that says something of memory reserves its part of the worker's card.

It does so before its fixtures are set up, and gives it back when they are torn down. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from pytest_memleak.hooks.assigning import Place, place_of
from pytest_memleak.hooks.attributes import PLAN, WAITED
from pytest_memleak.hooks.unjudged import insist, record_refusal, refusing
from pytest_memleak.settings import OFF, SIMULATED, Settings
from pytest_memleak.workers import driver
from pytest_memleak.workers.need import PROFILED, need_of
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import Visible, callers
from pytest_memleak.workers.worker import worker_id

_RESERVATIONS = pytest.StashKey[Reservations]()


def reservations_of(config: pytest.Config) -> Reservations:
    """This process's, for its tests and for the ranks that it starts alike."""
    if (found := config.stash.get(_RESERVATIONS, None)) is None:
        keys = [one.key for one in cards_here()]
        config.stash[_RESERVATIONS] = found = Reservations(driver.find(), keys, worker_id(config))
        config.add_cleanup(found.close)
    return found


def cards_here() -> tuple[Visible, ...]:
    """Those that this process sees."""
    there = driver.find()
    return () if there is None else callers(there.devices())


def around_tests(session: pytest.Session, settings: Settings) -> None:
    """Registered where a worker has a card, and some of its tests say that they need one."""
    place = place_of(session.config)
    if place is None or settings.share == OFF or settings.backend in (SIMULATED, "cpu"):
        return
    if any(PLAN in item.stash or item.get_closest_marker(PROFILED) for item in session.items):
        session.config.pluginmanager.register(SharedCards(settings, place), "memleak-sharing")


class SharedCards:
    def __init__(self, settings: Settings, place: Place) -> None:
        self._settings = settings
        self._place = place
        self._asked = False

    # Not a wrapper: skips are decided by hooks that come first, and a test that is skipped waits for nothing.
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        with refusing(item):
            need = need_of(item, item.stash.get(PLAN, None), self._settings, self._place.sharers)
            if need is None:
                return
            cards = cards_here()
            if len(cards) != 1 or cards[0].device is None:
                return  # a slice of a card, of whose memory the driver's readings say nothing
            self._asked = True  # before it is taken: an interrupt may come between
            taken = reservations_of(item.config).take(item.nodeid, need, cards, self._settings.card_timeout)
            item.stash[WAITED] = taken.waited_for

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            if self._asked:
                self._asked = False
                reservations_of(item.config).give_back()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if PLAN not in item.stash:  # else those who measure it see to that
            insist(report, call)
            record_refusal(report, item)
        return report
