"""Runs of pytest inside this process leave it as it was, for the tests that come later."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from tests.conftest import Run

QUANTIZES = """
import bitsandbytes, torch

def test_it():
    bitsandbytes.functional.quantize_4bit(torch.ones(64), quant_type="fp4")
"""


def test_tables_that_a_library_makes_on_first_use_outlive_the_run_that_needed_them(run_on_cpu: Run) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    import_module("bitsandbytes.backends.default.ops")._get_4bit_quantize_bounds.cache_clear()
    import_module("bitsandbytes.backends.utils")._code_4bit_cache.clear()
    run_on_cpu(QUANTIZES).assert_outcomes(passed=1)
    packed, state = functional.quantize_4bit(torch.ones(64), quant_type="fp4")
    assert torch.equal(functional.dequantize_4bit(packed, state).flatten(), torch.ones(64))
