"""Ranks that are played on the simulated card; see the files in played/, which have processes of their own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.alone import run_alone

HERE = Path(__file__).with_name("played")


@pytest.mark.parametrize("file", ["ranks.py", "collectives.py", "host.py", "shards.py"])
def test_played(file: str, pytester: pytest.Pytester) -> None:
    run_alone(pytester, HERE / file)


def test_with_accelerate(pytester: pytest.Pytester) -> None:
    if not find_spec("accelerate") or not find_spec("transformers"):
        pytest.skip("accelerate and transformers are not installed")
    run_alone(pytester, HERE / "prepared.py")
