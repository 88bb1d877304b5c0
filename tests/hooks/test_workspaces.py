"""Tests that read the allocator's counters find what they would find without the plugin."""

from __future__ import annotations

import pytest
import torch

from tests.hooks.workspaces import BASELINES, check

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")


@pytest.mark.parametrize("baseline", BASELINES)
def test_workspaces_are_there_as_without_the_plugin(pytester: pytest.Pytester, baseline: tuple[str, ...]) -> None:
    check(pytester, "--gpu-backend=simulated", *baseline)


_ASK = """
import torch

def test_first():
    small = torch.ones(64, 64, device="cuda")
    small @ small

def test_asks():
    torch.cuda.memory_allocated()

def test_takes_and_asks():
    small = torch.ones(64, 64, device="cuda")
    torch.cuda.memory_allocated()

def test_multiplies_and_asks():
    small = torch.ones(64, 64, device="cuda")
    torch.cuda.memory_allocated()
    small @ small
"""


@pytest.mark.parametrize("alone", ["recorded", "compared"])
def test_a_baseline_holds_whatever_ran_before(pytester: pytest.Pytester, alone: str) -> None:
    pytester.makepyfile(test_asking=_ASK)
    each = ["test_first", "test_asks", "test_takes_and_asks", "test_multiplies_and_asks"]
    together = [("test_asking.py",)]
    apart = [(f"test_asking.py::{name}",) for name in each]
    recording, comparing = (apart, together) if alone == "recorded" else (together, apart)
    options = ("-p", "no:cacheprovider", "--gpu-backend=simulated", "--memleak-baseline=there.txt")
    for chosen in recording:
        assert pytester.runpytest_subprocess(*options, "--memleak-update=new", *chosen).ret == 0
    for chosen in comparing:
        result = pytester.runpytest_subprocess(*options, *chosen)
        assert result.ret == 0
        result.stdout.fnmatch_lines("baseline there.txt: * compared*")
