"""Four simulated cards for a file of tests that has a process to itself; see tests/alone.py."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from tests.alone import simulated


@pytest.fixture
def four_cards() -> Iterator[Any]:
    gc.collect()  # modules that FSDP2 has been at are in cycles, and hold memory of the card
    with simulated("4xh200") as made:
        yield made
