"""In the process that starts pytest-xdist's workers: which of the caller's cards each gets, and how many fit.

The variable is set when a worker's process starts, long before anything there imports torch. A worker that xdist starts
in place of a crashed one gets the same card.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pytest

from pytest_memleak import settings as all_settings
from pytest_memleak.budget.sizes import format_size
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.settings import OFF, SETTINGS, SIMULATED, Settings
from pytest_memleak.wording import plural
from pytest_memleak.workers import driver
from pytest_memleak.workers.fitting import CONTEXT
from pytest_memleak.workers.need import known_limit
from pytest_memleak.workers.visible import VARIABLE, Visible, callers, sharers

_INPUT = "memleak_place"
_DEALT = pytest.StashKey[dict[str, "Place"]]()
_FEWER = pytest.StashKey[str]()


@dataclass(frozen=True)
class Place:
    """What a worker is told of its card."""

    card: str
    """As the caller named it."""
    callers: tuple[str, ...]
    """All that the caller may use: for tests on several ranks."""
    sharers: int
    """How many workers of the run have this card."""


def place_of(config: pytest.Config) -> Place | None:
    """This worker's; None in a process that is no worker, or has no card of the caller's."""
    told = getattr(config, "workerinput", {}).get(_INPUT)
    return None if told is None else Place(told["card"], tuple(told["callers"]), told["sharers"])


def fewer(config: pytest.Config, workers: int) -> int:
    """Of ``-n auto``: not more than fit on the cards, where the run says what each test may take of one."""
    read = all_settings.read(config)
    limit = known_limit(read)
    if limit is None or os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return workers
    there, cards = driver.find(), _cards(read)
    if there is None or not cards or any(one.device is None for one in cards):
        return workers
    try:
        room = [one.device.total - there.used(one.key) for one in cards if one.device is not None]
    except Unavailable as error:
        raise pytest.UsageError(f"-n auto: {error}") from None
    fitting = max(1, sum(free // (limit + CONTEXT) for free in room))
    if fitting >= workers:
        return workers
    config.stash[_FEWER] = (
        f"-n auto: {plural(fitting, 'worker')} instead of {workers}: each may take {format_size(limit)} and a context "
        f"of the {plural(len(cards), 'card')}"
    )
    return fitting


def deal(config: pytest.Config, specs: Sequence[Any]) -> None:
    """Writes each worker's card into what is to start it."""
    cards = _cards(config.stash[SETTINGS])
    if not cards:
        return
    # Of another machine's cards nothing is known here; and whoever chose a worker's card himself had a reason.
    local = [spec for spec in specs if spec.popen and not spec.via and VARIABLE not in spec.env]
    config.stash[_DEALT] = _places(cards, len(local))
    for index, spec in enumerate(local):
        spec.env[VARIABLE] = cards[index % len(cards)].name


def tell(config: pytest.Config, node: Any) -> None:
    """What a worker's tests have to know of its card, with what xdist tells it."""
    place = config.stash.get(_DEALT, {}).get(node.gateway.spec.env.get(VARIABLE))
    if place is not None and node.gateway.spec.popen:
        node.workerinput[_INPUT] = asdict(place) | {"callers": list(place.callers)}


def header(config: pytest.Config) -> list[str]:
    """Which card each worker has, for the top of a run that starts some; nothing without cards."""
    if config.option.collectonly:
        return []
    cards, workers = _cards(config.stash[SETTINGS]), _local_workers(config.getoption("tx") or ())
    if not cards or not workers:
        return _unread(config.stash[SETTINGS])
    lines = [f"memleak: {config.stash[_FEWER]}"] if _FEWER in config.stash else []
    lines += _left_out()
    dealt = []
    for index, card in enumerate(cards[:workers]):
        names = ", ".join(f"gw{number}" for number in range(index, workers, len(cards)))
        what = f"{card.device.name}, {format_size(card.device.total)}" if card.device else "not shared by its memory"
        dealt.append(f"{names}: {card.name} ({what})")
    return [*lines, f"memleak: cards of the workers, by CUDA_VISIBLE_DEVICES: {'; '.join(dealt)}"]


def _places(cards: Sequence[Visible], workers: int) -> dict[str, Place]:
    names = tuple(one.name for one in cards)
    return {name: Place(name, names, max(1, sharers(len(names), workers, index))) for index, name in enumerate(names)}


def _cards(settings: Settings) -> tuple[Visible, ...]:
    """The caller's, if workers are to be given some."""
    try:
        return _callers(settings)
    except BadInput as error:
        if _speaks_of_memory(settings):
            raise pytest.UsageError(str(error)) from None
        return ()  # CUDA may read what we do not, and this run may not be about memory at all: see `header`


def _callers(settings: Settings) -> tuple[Visible, ...]:
    if settings.share == OFF or settings.backend in (SIMULATED, "cpu"):
        return ()
    there = driver.find()
    return () if there is None else callers(there.devices())


def _speaks_of_memory(settings: Settings) -> bool:
    """Whether the run itself does. Of its tests nothing is known where workers are started."""
    return bool(settings.share_given or settings.cap_given or settings.defaults or settings.baseline)


def _left_out() -> list[str]:
    there = driver.find()
    return [
        f"memleak: card {device.key or number} is left out: the driver tells nothing of it ({device.trouble})"
        for number, device in enumerate(there.devices() if there is not None else ())
        if device.trouble
    ]


def _unread(settings: Settings) -> list[str]:
    try:
        _callers(settings)
    except BadInput as error:
        return [f"memleak: the workers are given no cards. {error}"]
    return []


def _local_workers(specs: Sequence[str]) -> int:
    """How many processes of this machine pytest-xdist's specifications mean: ``popen``, ``3*popen``."""
    count = 0
    for spec in specs:
        times, star, what = spec.partition("*")
        kind, number = (what, times) if star and times.isdigit() else (spec, "1")
        count += int(number) if kind.startswith("popen") and f"env:{VARIABLE}" not in kind else 0
    return count
