"""Gradients whose norm is infinite though each of them is finite: what a program would see, and no more."""

from __future__ import annotations

import math

import pytest
import torch

from pytest_memleak.values.named import GRADIENT, Named
from pytest_memleak.values.norms import infinite_norm
from pytest_memleak.values.scan import scan


@pytest.mark.parametrize(
    ("dtype", "value", "count"),
    [
        (torch.float32, 1.7e19, 1),
        (torch.float32, 1.7e19, 4),
        (torch.bfloat16, 1.9e17, 20_000),
        (torch.float16, 60_000.0, 1),
        (torch.float16, 60_000.0, 2),
        (torch.float16, 1_000.0, 4_000),
        (torch.float16, 1_000.0, 5_000),
        (torch.float64, 1e150, 9),
        (torch.float64, 1e200, 1),
    ],
)
@pytest.mark.parametrize("tensors", [1, 3])
def test_it_is_what_clipping_would_come_to(dtype: torch.dtype, value: float, count: int, tensors: int) -> None:
    gradients = [torch.full((count,), value, dtype=dtype) for _ in range(tensors)]
    parameters = [torch.nn.Parameter(torch.zeros(count, dtype=dtype)) for _ in gradients]
    named = [Named(f"{number}.grad", GRADIENT, one) for number, one in enumerate(gradients)]
    found = scan(named)
    assert found.bad == []
    told = infinite_norm(named, found.largest)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    assert bool(told) == math.isinf(torch.nn.utils.clip_grad_norm_(parameters, 1.0).item())
    if told:
        assert f"the largest is {torch.tensor(value, dtype=dtype).item():.3g}" in told


def test_without_gradients_there_is_no_norm() -> None:
    assert infinite_norm([], []) == ""
