"""What needs a process whose simulated card nobody else has used."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.alone import run_alone


def test_other_cards(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("other_cards.py"))


@pytest.mark.parametrize("first", [False, True])
def test_bitsandbytes(first: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was imported before there was a card."""
    if not find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is not installed")
    monkeypatch.setenv("BITSANDBYTES_FIRST", "1" if first else "")
    run_alone(pytester, Path(__file__).with_name("quantized.py"))


def test_refusals(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("refusals.py"))


def test_computed(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("computed.py"))


def test_normalization(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("normalization.py"))


def test_values(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("values.py"))


def test_margins(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("margins.py"))


def test_forks(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("forks.py"))
