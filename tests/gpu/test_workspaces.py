"""Tests that read a real card's counters find what they would find without the plugin."""

from __future__ import annotations

import pytest
import torch

from tests.hooks.workspaces import BASELINES, check

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("baseline", BASELINES)
def test_workspaces_are_there_as_without_the_plugin(pytester: pytest.Pytester, baseline: tuple[str, ...]) -> None:
    check(pytester, "--gpu-backend=real", *baseline)
