"""Storages by themselves on the simulated card; see storages.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone


def test_storages(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("storages.py"))
