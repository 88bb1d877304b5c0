"""What needs a process that has run no backward pass yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone


def test_other_cards(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("other_cards.py"))


def test_values(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("values.py"))
