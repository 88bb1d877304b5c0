"""Four simulated cards for a file of tests that has a process to itself; see tests/alone.py."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_memleak.errors import Unavailable


@pytest.fixture
def four_cards() -> Iterator[Any]:
    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of

    try:
        made = simulation_of(cards_of("4xh200"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    gc.collect()  # modules that FSDP2 has been at are in cycles, and hold memory of the card
    made.on()
    made.unknowns.reset()
    made.presumptions.reset()
    yield made
    made.off()
