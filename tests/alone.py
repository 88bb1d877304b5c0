"""Tests that need a process to themselves: a simulated card is one for the whole process, and stays as it was made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pytest_memleak.cards.simulated.process import simulation_of
from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.errors import Unavailable

# Each prediction collects, and looks at every object of the process. With transformers imported that is half of the
# time; what is there when a test has ended, modules above all, is no later test's.
_FROZEN = """
import gc
import pytest

@pytest.fixture(autouse=True)
def frozen():
    yield
    gc.collect()
    gc.freeze()
"""


def run_alone(pytester: pytest.Pytester, file: Path, *, predicts: bool = False) -> None:
    """Runs a file of tests on the simulated card; skipped where there is a real one.

    `predicts`: all of them call `predict`, so that later ones need not look at what the first ones have imported.
    """
    if torch.accelerator.is_available() or torch.version.hip:
        pytest.skip("no card is simulated beside a real one, nor by a torch that is built for ROCm")
    options = ["-p", "no:cacheprovider", "-p", "no:randomly", "-ra"]
    if predicts:
        pytester.makepyfile(frozen=_FROZEN)
        options += ["-p", "frozen"]
    result = pytester.runpytest_subprocess(*options, str(file))
    outcomes = result.parseoutcomes()
    assert outcomes.pop("warnings", 0) >= 0
    assert set(outcomes) in ({"passed"}, {"passed", "skipped"}), "\n".join(result.outlines)


@contextlib.contextmanager
def simulated(cards: str = "") -> Iterator[Simulation]:
    """In such a process, for one test: these cards are there, and nothing is known of them yet."""
    try:
        made = simulation_of(cards_of(cards))
    except Unavailable as reason:
        pytest.skip(str(reason))
    made.on()
    made.unknowns.reset()
    made.presumptions.reset()
    yield made
    made.off()
