"""Streams of the simulated card; see streams.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone


def test_streams(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("streams.py"))
