"""How fast the look for NaN is, and how much memory it takes: ratios from one run, to `torch.aminmax` of each tensor.

    python benchmarks/nan_scan.py                           # on the CPU
    python benchmarks/nan_scan.py --device cuda --gib 16    # where a GPU is

Three models of the same bytes: a few large tensors, a decoder's (large ones and norms), and many small ones. All run in
turn, several times, and of each the best counts. `isfinite().all()` is what one would write by hand.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest_memleak
from pytest_memleak.values.bits import bits_of
from pytest_memleak.values.named import of_module
from pytest_memleak.values.scan import scan

ROUNDS = 7
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def model(shapes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> torch.nn.Module:
    made = torch.nn.Module()
    for number, shape in enumerate(shapes):
        weight = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=device).normal_(), requires_grad=False)
        made.register_parameter(f"weight_{number}", weight)
    return made


def shapes_of(kind: str, count: int) -> list[tuple[int, ...]]:
    """Of `count` values in all, about."""
    if kind == "few":
        return [(count // 4,)] * 4
    if kind == "decoder":
        width = 4096 if count > 2**30 else 1024
        layer: list[tuple[int, ...]] = [(width, width)] * 4 + [(4 * width, width)] * 3 + [(width,)] * 2
        return layer * max(1, count // (16 * width * width))
    return [(64, 1024)] * min(4096, count // 65536)


def best(run: Callable[[], object], device: str) -> float:
    seconds = []
    for _ in range(ROUNDS):
        synchronize(device)
        began = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def extra(run: Callable[[], object]) -> int:
    """Bytes at the peak over what was there."""
    with pytest_memleak.measure("before") as before:
        pass
    with pytest_memleak.measure("run") as measured:
        run()
    return measured.peak - before.peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--gib", type=float, default=0.5, help="of each model")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    options = parser.parse_args()
    dtype = DTYPES[options.dtype]
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"torch {torch.__version__}, {name}, {options.dtype}, {torch.get_num_threads()} threads")
    for kind in ("few", "decoder", "many"):
        made = model(shapes_of(kind, int(options.gib * 2**30 / dtype.itemsize)), dtype, options.device)
        tensors = list(made.parameters())
        size = sum(tensor.nbytes for tensor in tensors)

        def aminmax(tensors: list[torch.nn.Parameter] = tensors) -> object:
            return [torch.aminmax(tensor) for tensor in tensors]

        def finite(tensors: list[torch.nn.Parameter] = tensors) -> object:
            return [bool(torch.isfinite(tensor).all()) for tensor in tensors]

        def looked(made: torch.nn.Module = made) -> object:
            return scan(of_module(made))

        def bits(tensors: list[torch.nn.Parameter] = tensors) -> object:
            return [bits_of(tensor) for tensor in tensors]

        base = best(aminmax, options.device)
        speed = f"torch.aminmax of each: {size / base / 1e9:.1f} GB/s"
        print(f"{kind}: {len(tensors)} tensors, {size / 2**30:.2f} GiB; {speed}")
        for what, run in (("the look", looked), ("isfinite().all()", finite), ("the comparison's bits", bits)):
            print(f"  {what}: {best(run, options.device) / base:.2f} × aminmax, {extra(run):,} B more at the peak")


if __name__ == "__main__":
    main()
