"""A process that transformers takes for a rank whose weights come from another, and a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This process is a rank whose weights come from another."""
    from torch import distributed

    from pytest_memleak.cases import fsdp_loads

    for name, value in fsdp_loads.VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    store = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.fixes.fsdp_waiting import TINY, saved

    return saved(tmp_path_factory.mktemp("tiny"), TINY)
