"""What ``memleak predict --train`` says of plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone

pytest.importorskip("transformers", minversion="4.56")
pytest.importorskip("numpy")


def test_plans_that_are_told(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("simulated_predict_plan.py"), predicts=True)
