"""What operations take on the simulated card; see operations.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.alone import run_alone

# Kernels of older releases take other memory than the recorded ones.
_SINCE = (2, 11)


def test_operations(pytester: pytest.Pytester) -> None:
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SINCE:
        pytest.skip(f"the recording is of torch {'.'.join(map(str, _SINCE))}")
    run_alone(pytester, Path(__file__).with_name("operations.py"))
