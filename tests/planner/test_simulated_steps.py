"""What a step takes under a plan, estimated and run on the simulated card."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone

pytest.importorskip("transformers")


def test_steps(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("simulated_steps.py"), predicts=True)
