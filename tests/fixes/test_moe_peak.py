"""What a load under the fix `moe_experts` needs beyond what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alone import run_alone

pytest.importorskip("bitsandbytes.nn.parametrize")
pytest.importorskip("transformers.core_model_loading")


def test_peaks(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("moe_peaks.py"))
