"""bitsandbytes on the simulated card: its own kernels take the memory, and what is small is computed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

if os.environ.get("BITSANDBYTES_FIRST"):
    pytest.importorskip("bitsandbytes")

from pytest_memleak.cards.simulated.simulation import Simulation

BF16, FP16 = torch.bfloat16, torch.float16


pytestmark = pytest.mark.usefixtures("simulation")


@pytest.fixture
def bnb(simulation: Simulation) -> Any:
    return pytest.importorskip("bitsandbytes")


def taken(run: Any) -> int:
    """How much more the peak is than what was there."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def needs(bnb: Any, operation: str) -> None:
    if not hasattr(torch.ops.bitsandbytes, operation):
        pytest.skip(f"bitsandbytes {bnb.__version__} has no {operation}")


def test_small_tensors_are_quantized_for_real(bnb: Any, simulation: Simulation) -> None:
    values = torch.linspace(-1, 1, 128)
    for quantize, dequantize, near in (
        (lambda x: bnb.functional.quantize_4bit(x, quant_type="nf4"), bnb.functional.dequantize_4bit, 0.2),
        (bnb.functional.quantize_blockwise, bnb.functional.dequantize_blockwise, 0.02),
    ):
        again = dequantize(*quantize(values.to("cuda")))
        assert again.device.type == "cuda"
        if not torch.ops.memleak_card.knows(again):
            pytest.skip(f"bitsandbytes {bnb.__version__} has no library for the CPU if it is imported beside a card")
        difference = (again.cpu() - values).abs().max()
        assert 0 < difference < near
    assert not simulation.unknowns.placeholders
    assert simulation.unknowns.doubt() is None


def test_large_ones_have_sizes(bnb: Any, simulation: Simulation) -> None:
    large = torch.randn(4096, 4096, device="cuda", dtype=BF16)
    packed, state = bnb.functional.quantize_4bit(large, quant_type="nf4", compress_statistics=True)
    assert (packed.shape, packed.dtype, str(packed.device)) == ((4096 * 4096 // 2, 1), torch.uint8, "cuda:0")
    assert state.absmax.shape == (4096 * 4096 // 64,)
    assert bnb.functional.dequantize_4bit(packed, state).shape == large.shape
    assert simulation.unknowns.doubt() is None


def test_few_tokens_go_without_the_whole_weight(bnb: Any) -> None:
    """From some number of tokens on the weight is there in full for the product, with its scales in 32 bits twice."""
    needs(bnb, "gemm_4bit")
    layer = bnb.nn.Linear4bit(1024, 1024, bias=False, compute_dtype=BF16, quant_type="nf4").to("cuda")
    one, many = (torch.randn(count, 1024, device="cuda", dtype=BF16) for count in (1, 4096))
    with torch.no_grad():
        layer(many)  # cuBLAS' workspace
        assert taken(lambda: layer(one)) == 2 * 1024
        assert taken(lambda: layer(many)) == 2 * 4096 * 1024 + 2 * 1024 * 1024 + 2 * 4 * 1024 * 1024 // 64


def forward_in_8_bits(bnb: Any, threshold: float) -> None:
    layer = bnb.nn.Linear8bitLt(1024, 1024, False, has_fp16_weights=False, threshold=threshold).to("cuda")
    with torch.no_grad():
        assert layer(torch.randn(512, 1024, device="cuda", dtype=FP16)).shape == (512, 1024)


def test_outliers_are_for_values_to_say(bnb: Any, simulation: Simulation) -> None:
    forward_in_8_bits(bnb, 0.0)
    assert simulation.unknowns.doubt() is None
    forward_in_8_bits(bnb, 6.0)
    assert "quantized.py" in str(simulation.unknowns.doubt())
    assert simulation.presumptions.remarks() == ()


def test_predictions_presume_that_there_are_no_outliers(bnb: Any, simulation: Simulation) -> None:
    with simulation.presumptions.without_outliers():
        forward_in_8_bits(bnb, 0.0)
        assert simulation.presumptions.remarks() == (), "nobody asks for any"
        forward_in_8_bits(bnb, 6.0)
    assert simulation.unknowns.doubt() is None
    (remark,) = simulation.presumptions.remarks()
    assert "8-bit layers were taken to have no outliers" in remark


def test_outliers_that_are_known_are_found(bnb: Any, simulation: Simulation) -> None:
    layer = bnb.nn.Linear8bitLt(64, 64, False, has_fp16_weights=False, threshold=6.0).to("cuda")
    rows = torch.ones(4, 64, dtype=FP16)
    rows[:, 3] = 100
    with torch.no_grad():
        layer(rows.to("cuda"))
        few = taken(lambda: layer(torch.ones(4, 64, dtype=FP16).to("cuda")))
        assert taken(lambda: layer(rows.to("cuda"))) > few, "the column is multiplied by itself"
    assert simulation.presumptions.remarks() == ()


@pytest.mark.parametrize("name", ["Adam8bit", "Adam"])
def test_optimizers_write_what_they_know(name: str, bnb: Any, simulation: Simulation) -> None:
    needs(bnb, "optimizer_update_32bit")
    weight, other = (torch.nn.Parameter(torch.ones(64, 64, device="cuda")) for _ in range(2))
    optimizer = getattr(bnb.optim, name)([weight, other], lr=0.25)
    weight.grad = torch.ones_like(weight)
    other.grad = torch.rand(1024, 1024, device="cuda")[:64, :64].contiguous()  # of too many to be computed
    optimizer.step()
    assert weight.detach().cpu().flatten()[0].item() == pytest.approx(0.75, abs=0.01)
    assert simulation.unknowns.doubt() is None
    if other.detach().mean() > 0:  # not what it was: nobody knows
        pass
    assert simulation.unknowns.doubt() is not None
