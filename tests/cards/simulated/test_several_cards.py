"""Several simulated cards; see several_cards.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone


def test_several_cards(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("several_cards.py"))
