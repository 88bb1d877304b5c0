"""What only a real GPU can show of values: that its kernels hand a NaN on, and that poison takes no memory there."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_memleak.upstream.poison import Poison
from pytest_memleak.values.bits import bits_of
from pytest_memleak.values.named import of_anything
from pytest_memleak.values.scan import scan
from tests.conftest import Records, Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("count", [1, 33, 100_003, 5_000_011])
def test_one_nan_anywhere_is_found(dtype: torch.dtype, count: int) -> None:
    tensor = torch.randn(count, device="cuda").to(dtype)
    assert scan(of_anything(tensor)).bad == []
    for place in {0, count // 3, count - 1}:
        worse = tensor.clone()
        worse[place] = math.nan
        (bad,) = scan(of_anything(worse)).bad
        assert (bad.nans, bad.first, bad.device) == (1, (place,), "cuda:0")


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int64, torch.bool], ids=str)
def test_the_bits_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    tensor = torch.randn(3_000_001).to(dtype)
    assert bits_of(tensor.cuda()) == bits_of(tensor)


def test_the_look_takes_next_to_nothing() -> None:
    tensors = [torch.ones(64 << 20, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
    scan(of_anything(tensors))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    scan(of_anything(tensors))
    assert torch.cuda.max_memory_allocated() - before < 1 << 20


def _train() -> tuple[int, int]:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = torch.nn.Sequential(
        torch.nn.Embedding(1000, 256), torch.nn.Linear(256, 256), torch.nn.LayerNorm(256)
    ).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.arange(512, device="cuda")
    for _ in range(3):
        optimizer.zero_grad()
        model(ids).square().mean().backward()
        optimizer.step()
    torch.empty(1 << 20, device="cuda").resize_(2 << 20)
    held = torch.cuda.memory_allocated() - before
    return held, torch.cuda.max_memory_allocated() - before


def test_poison_allocates_nothing() -> None:
    _train()
    plain = _train()
    poison = Poison()
    poison.on()
    try:
        assert bool(torch.empty(1000, device="cuda").isnan().all())
        poisoned = _train()
    finally:
        poison.off()
    assert poisoned[0] == plain[0]
    print("held and peak", plain, "poisoned", poisoned)


def test_red_and_green(run_on_gpu: Run, records: Records) -> None:
    result = run_on_gpu(
        """
        import pytest, torch

        def build(fixed):
            with torch.device("meta"):
                model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(3)])
            model.to_empty(device="cuda")
            for layer in model if fixed else ():
                layer.reset_parameters()
            return model

        @pytest.mark.no_nan
        def test_bug():
            build(fixed=False)

        @pytest.mark.no_nan
        def test_fix():
            build(fixed=True)

        @pytest.mark.no_nan(gradients=True)
        @pytest.mark.max_peak("100MiB")
        def test_trains():
            model = build(fixed=True)
            optimizer = torch.optim.AdamW(model.parameters())
            model(torch.randn(3, 512, device="cuda")).sum().backward()
            optimizer.step()

        @pytest.mark.no_nan(gradients=True)
        def test_overflows():
            model = build(fixed=True).half()
            model(torch.randn(3, 512, device="cuda").half()).sum().mul(60000).backward()
        """,
        "--memleak-json=out.json",
        "-p",
        "no:warnings",
    )
    result.assert_outcomes(passed=2, failed=2)
    (told,) = records()["test_bug"]["results"]
    assert (told["check"], told["verdict"], told["how"]) == ("no_nan", "fail", "measured")
    assert "100 % of 262,144 values are NaN, the first at [0, 0]" in told["message"]
