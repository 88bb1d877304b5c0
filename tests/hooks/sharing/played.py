"""What is put into runs whose workers share cards that are a file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

PLUGIN = """
import os
from pathlib import Path
from fake_cards import GIB, FakeCards
from pytest_memleak.workers import driver, own, reserving

CARDS = FakeCards(Path(__file__).with_name("cards.json"))
driver.find = lambda: CARDS
reserving.POLL = 0.01
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
KEY = f"GPU-{VISIBLE}f00"

def pytest_configure(config):
    config.addinivalue_line("markers", "profiled_vram_gib(gib): what the project's own profile says")
"""

TESTS = """
import json, os, pathlib, pytest, sys, time
from fake_plugin import CARDS, GIB, KEY, VISIBLE

HERE = pathlib.Path(__file__).parent
reserves = pytest.mark.profiled_vram_gib  # for these no worker imports torch, which is what takes time

def wait_for(condition):
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()

def claims():
    # Of the one worker that there is, its context with them.
    (file,) = HERE.glob("temporary/*/*.holder")
    return [hold["claim"] for hold in json.loads(file.read_text())["cards"].values()]
"""

LEAN = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:rerunfailures")

Start = Callable[..., pytest.RunResult]

TELL = """
@pytest.mark.parametrize("number", range(12))
def test_tell(number, worker_id):
    (HERE / f"{worker_id}.txt").write_text(repr((VISIBLE, "torch" in sys.modules)))
    wait_for(lambda: len(list(HERE.glob("gw*.txt"))) == 3)
"""


def told_each_other(pytester: pytest.Pytester) -> bool:
    return any((pytester.path / "temporary").glob("pytest-memleak-cards-*"))


def told(pytester: pytest.Pytester) -> dict[str, str]:
    return {file.stem: file.read_text() for file in pytester.path.glob("*.txt")}
