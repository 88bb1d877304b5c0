"""Products of quantized layers, counted as many as those of plain ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pytest_memleak.planner.products import products_of_bitsandbytes

bitsandbytes: Any = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_a_quantized_layer_computes_what_a_plain_one_does(kind: str) -> None:
    # As many as on any device: the CPU is one of those that bitsandbytes runs on.
    if kind == "4bit":
        layer = bitsandbytes.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32)
    else:
        layer = bitsandbytes.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
    layer = layer.to("cpu")
    x = torch.randn(4, 8, 64, requires_grad=True)
    with FlopCounterMode(display=False, custom_mapping=products_of_bitsandbytes()) as counter:
        y = layer(x)
        assert counter.get_total_flops() == 2 * 4 * 8 * 64 * 128
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 4 * 8 * 64 * 128
