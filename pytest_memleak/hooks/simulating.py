"""When the simulated card is there: from before the first conftest on, or around tests with a cap and no others.

Nothing here imports torch before somebody asked for a card.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.errors import BadInput, MemleakError, Unavailable
from pytest_memleak.hooks.attributes import PLAN
from pytest_memleak.hooks.interrupts import wait_for_callbacks
from pytest_memleak.settings import SIMULATED, Settings
from pytest_memleak.support import has_torch, require_torch

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation


def is_on() -> bool:
    process = sys.modules.get("pytest_memleak.cards.simulated.process")
    return process is not None and process.in_force() is not None


def from_the_start(config: pytest.Config, settings: Settings) -> None:
    """With --gpu-backend=simulated: what is imported from now on finds a card. Until the run ends."""
    if settings.backend != SIMULATED or is_on():
        return
    source = settings.backend_given.source if settings.backend_given else "--gpu-backend=simulated"
    cards = cards_of(settings.cards)
    if settings.cards and settings.cap is not None and settings.cap_given is not None and settings.cap > cards[0].total:
        raise pytest.UsageError(
            f"{settings.cap_given.source}: {settings.cap_given.text!r} is more than {cards[0].name} has "
            f"({cards[0].total:,} B): ask for less, or leave the card's name out"
        )
    try:
        require_torch()
        from pytest_memleak.cards.simulated.process import simulation_of

        simulation = simulation_of(cards)
    except MemleakError as error:
        raise pytest.UsageError(f"{source}: {error}") from None
    wait_for_callbacks(config)
    simulation.on()
    config.add_cleanup(simulation.off)


def around_tests(session: pytest.Session, settings: Settings) -> None:
    """With --gpu-backend=auto and no GPU: tests with a cap find a card. Called before the first of all tests runs."""
    config = session.config
    if settings.backend != "auto" or config.option.collectonly or not has_torch():
        return
    if not any(wants_card(item) for item in session.items):
        return
    try:
        require_torch()
    except Unavailable:
        return  # each measured test says so
    import torch

    if torch.accelerator.is_available():
        return
    from pytest_memleak.cards.simulated.process import simulation_of

    try:
        simulation = simulation_of(cards_of(""))
    except Unavailable as reason:
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and config.get_verbosity() >= 0:
            reporter.write_line(f"memleak: no simulated card, the CPU stands in with real values: {reason}")
    except BadInput as error:
        raise pytest.UsageError(f"a simulated card: {error}") from None
    else:
        config.pluginmanager.register(AroundTests(simulation), "memleak-simulating")


def wants_card(item: pytest.Item) -> bool:
    plan = item.stash.get(PLAN, None)
    return plan is not None and plan.cap is not None and item.get_closest_marker("skip") is None


class AroundTests:
    """It stays on between two tests that want it, and between their fixtures' set-up and teardown."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if wants_card(item):
            self._simulation.on()
        else:
            self._simulation.off()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        try:
            return (yield)
        finally:
            self._simulation.off()
