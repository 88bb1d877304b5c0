"""What the tests of baselines have in common: a small suite whose sizes come from the environment, and its file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run

FILE = "baseline.txt"
TO_THE_BYTE = (f"--memleak-baseline={FILE}", "--memleak-baseline-tolerance=0")
MIB = 1024**2

START = """
import os, pytest, torch

def fill(name, mib=1):
    return torch.zeros(int(os.environ.get(name, mib)) * 1024**2, dtype=torch.uint8, device=DEVICE)

DEVICE = os.environ.get("DEVICE", "cpu")
"""
SUITE = f"""{START}
def test_a(): fill("A")
def test_b(): fill("B")
@pytest.mark.parametrize("x", ["with space", "é", "line\\nend"])
def test_c(x): fill("C", 2)
def test_nothing(): ...
"""
NAMES = ["test_a", "test_b", r"test_c[\\xe9]", r"test_c[line\\nend]", r"test_c[with\x20space]"]

Against = Callable[..., pytest.RunResult]


def peaks(folder: Path) -> dict[str, int]:
    """Of the file, by the last part of the node id as it is written there."""
    lines = (folder / FILE).read_text(encoding="ascii").splitlines()
    found = (re.fullmatch(r".*::(\S+) \S+ \S+ torch-\S+ peak\(\S+\)=(\d+)", line) for line in lines if line[0] != "#")
    return {match[1]: int(match[2]) for match in found if match}


def told(folder: Path) -> dict[str, Any]:
    """Of the JSON report: what became of the run and its baseline."""
    found: dict[str, Any] = json.loads((folder / "out.json").read_text())["baseline"]
    return found


@pytest.fixture
def against(run_on_cpu: Run) -> Against:
    """Runs a suite against the file, in this process, on the CPU, to the byte."""

    def run(text: str, *args: str) -> pytest.RunResult:
        return run_on_cpu(text, *TO_THE_BYTE, "--memleak-json=out.json", *args)

    return run
