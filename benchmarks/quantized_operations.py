"""What bitsandbytes' layers and optimizers do on a card, for operations.py."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Any

import torch

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def bitsandbytes_version() -> str | None:
    try:
        return importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return None


def quantized_operations() -> Iterator[tuple[str, Callable[[], Any]]]:
    """None without bitsandbytes."""
    if bitsandbytes_version() is None:
        return
    import bitsandbytes

    functional = bitsandbytes.functional
    for columns, rows in ((1024, 1024), (2048, 5632), (5632, 2048)):
        for nested in (False, True):
            kind = f"{columns}x{rows}{' nested' if nested else ''}"
            for count in (1, 4, 64, 512, 4096):
                yield f"4-bit {kind} of {count}", forward(four_bits(columns, rows, nested), count, columns, BF16)
            yield f"4-bit {kind} backward", backward(four_bits(columns, rows, nested), 512, columns, BF16)
            yield f"4-bit {kind} in fp32", forward(four_bits(columns, rows, nested, FP32), 64, columns, FP32)
        for bias in (False, True):
            kind = f"{columns}x{rows}{' with bias' if bias else ''}"
            yield f"8-bit {kind}", forward(eight_bits(columns, rows, bias), 512, columns, FP16)
            yield f"8-bit {kind} in bf16", forward(eight_bits(columns, rows, bias), 512, columns, BF16)
            yield f"8-bit {kind} backward", backward(eight_bits(columns, rows, bias), 512, columns, FP16)
    for nested in (False, True):
        yield (
            f"quantize to 4 bits{' nested' if nested else ''}",
            lambda n=nested: functional.quantize_4bit(on_card(2048, 5632), compress_statistics=n, quant_type="nf4"),
        )
    for name in ("Adam8bit", "AdamW8bit", "Adam", "Lion8bit"):
        yield f"bitsandbytes {name}", lambda n=name: steps(getattr(bitsandbytes.optim, n))


def on_card(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda")


def four_bits(columns: int, rows: int, nested: bool, dtype: torch.dtype = BF16) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        import bitsandbytes

        made: torch.nn.Module = bitsandbytes.nn.Linear4bit(
            columns, rows, bias=False, compute_dtype=dtype, compress_statistics=nested, quant_type="nf4"
        )
        return made.to("cuda")

    return make


def eight_bits(columns: int, rows: int, bias: bool) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        import bitsandbytes

        # Without a threshold: what is beyond one is for values to say.
        made: torch.nn.Module = bitsandbytes.nn.Linear8bitLt(columns, rows, bias, has_fp16_weights=False, threshold=0.0)
        return made.to("cuda")

    return make


def forward(make: Callable[[], torch.nn.Module], count: int, columns: int, dtype: torch.dtype) -> Callable[[], Any]:
    def run() -> Any:
        layer = make()
        with torch.no_grad():
            return layer(on_card(count, columns, dtype=dtype))

    return run


def backward(make: Callable[[], torch.nn.Module], count: int, columns: int, dtype: torch.dtype) -> Callable[[], Any]:
    def run() -> Any:
        found = make()(on_card(count, columns, dtype=dtype).requires_grad_())
        found.backward(torch.ones_like(found))

    return run


def steps(optimizer: Any) -> None:
    weights = [torch.nn.Parameter(on_card(1024, 1024)), torch.nn.Parameter(on_card(64))]
    made = optimizer(weights, lr=0.1)
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        made.step()
