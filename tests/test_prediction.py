"""`pytest_memleak.predict`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone


def test_predictions(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("predictions.py"), predicts=True)
