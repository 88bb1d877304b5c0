"""Tests that need a process to themselves: a simulated card is one for the whole process, and stays as it was made."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def run_alone(pytester: pytest.Pytester, file: Path) -> None:
    """Runs a file of tests on the simulated card; skipped where there is a real one."""
    if torch.accelerator.is_available() or torch.version.hip:
        pytest.skip("no card is simulated beside a real one, nor by a torch that is built for ROCm")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", "-ra", str(file))
    outcomes = result.parseoutcomes()
    assert outcomes.pop("warnings", 0) >= 0
    assert set(outcomes) in ({"passed"}, {"passed", "skipped"}), "\n".join(result.outlines)
