"""What single operations take from the caching allocator, on a card and on the simulated one.

    python benchmarks/operations.py --out real.json         # on a machine with a GPU
    python benchmarks/operations.py --compare real.json     # anywhere: prints where the simulated card differs

Each entry is run twice; the second time is taken, so that what libraries keep from their first call on is left out.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quantized_operations import bitsandbytes_version, quantized_operations

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def tensor(*shape: int, dtype: torch.dtype = BF16, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, device="cuda").requires_grad_(grad)


def attention(
    batch: int, heads: int, kv: int, length: int, width: int, dtype: torch.dtype, mask: str, grad: bool
) -> Callable[[], Any]:
    def run() -> Any:
        query = tensor(batch, heads, length, width, dtype=dtype, grad=grad)
        key, value = (tensor(batch, kv, length, width, dtype=dtype, grad=grad) for _ in range(2))
        given = None
        if mask == "bool":
            given = torch.ones(batch, 1, length, length, dtype=torch.bool, device="cuda").tril()
        elif mask == "float":
            given = torch.zeros(batch, 1, length, length, dtype=dtype, device="cuda")
        found = F.scaled_dot_product_attention(
            query, key, value, given, is_causal=mask == "causal", enable_gqa=kv != heads
        )
        if grad:
            found.backward(torch.ones_like(found))

    return run


def backward(make: Callable[[], torch.Tensor]) -> Callable[[], Any]:
    def run() -> Any:
        found = make()
        found.backward(torch.ones_like(found))

    return run


def operations() -> Iterator[tuple[str, Callable[[], Any]]]:
    for dtype in (BF16, FP32):
        kind = str(dtype).removeprefix("torch.")
        for mask in ("none", "causal", "bool", "float"):
            for batch, heads, kv, length, width in (
                (2, 16, 16, 512, 64),
                (2, 16, 4, 512, 64),
                (1, 32, 8, 1000, 128),
                (2, 8, 8, 77, 80),
                (1, 8, 8, 256, 256),
            ):
                for grad in (False, True):
                    name = f"attention {kind} {mask} {batch}x{heads}/{kv}x{length}x{width}{' backward' if grad else ''}"
                    yield name, attention(batch, heads, kv, length, width, dtype, mask, grad)
    for rows, columns in ((64, 1024), (2048, 1024), (8192, 4096), (512, 32000)):
        for dtype in (BF16, FP32):
            kind = f"{str(dtype).removeprefix('torch.')} {rows}x{columns}"
            for axis in (0, 1):
                yield f"sum over {axis} {kind}", lambda r=rows, c=columns, d=dtype, a=axis: tensor(r, c, dtype=d).sum(a)
            yield f"sum {kind}", lambda r=rows, c=columns, d=dtype: tensor(r, c, dtype=d).sum()
            yield f"norm {kind}", lambda r=rows, c=columns, d=dtype: torch.linalg.vector_norm(tensor(r, c, dtype=d))
            yield f"softmax {kind}", lambda r=rows, c=columns, d=dtype: tensor(r, c, dtype=d).softmax(-1)
            yield (
                f"layer_norm {kind}",
                backward(
                    lambda r=rows, c=columns, d=dtype: F.layer_norm(
                        tensor(r, c, dtype=d, grad=True),
                        (c,),
                        tensor(c, dtype=d, grad=True),
                        tensor(c, dtype=d, grad=True),
                    )
                ),
            )
            yield (
                f"rms_norm {kind}",
                backward(
                    lambda r=rows, c=columns, d=dtype: F.rms_norm(
                        tensor(r, c, dtype=d, grad=True), (c,), tensor(c, dtype=d, grad=True)
                    )
                ),
            )
    for sizes in ((3, 2048, 2048), (3, 2048, 2816), (16, 512, 30522)):
        rows, columns, wide = sizes
        yield (
            f"linear {sizes}",
            backward(
                lambda r=rows, c=columns, w=wide: F.linear(
                    tensor(r, 77, c, grad=True), tensor(w, c, grad=True), tensor(w, grad=True)
                )
            ),
        )
        yield (
            f"addmm {sizes}",
            lambda r=rows, c=columns, w=wide: torch.addmm(tensor(w), tensor(r * 77, c), tensor(c, w)),
        )
    for vocabulary, width, count in ((32000, 1024, 2048), (128256, 2048, 512), (50257, 768, 1024)):
        yield (
            f"embedding {vocabulary}x{width} of {count}",
            backward(
                lambda v=vocabulary, w=width, n=count: F.embedding(
                    torch.randint(0, v, (n,), device="cuda"), tensor(v, w, grad=True)
                )
            ),
        )
        yield (
            f"cross_entropy {vocabulary} of {count}",
            backward(
                lambda v=vocabulary, n=count: F.cross_entropy(
                    tensor(n, v, dtype=FP32, grad=True), torch.randint(0, v, (n,), device="cuda")
                )
            ),
        )
    for name in ("gelu", "silu", "relu", "sigmoid", "tanh"):
        yield name, backward(lambda n=name: getattr(F, n)(tensor(512, 4096, grad=True)))
    for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss"):
        for reduction in ("none", "mean", "sum"):
            for rows, columns in ((64, 1024), (8192, 4096)):
                yield (
                    f"{name} {reduction} {rows}x{columns}",
                    backward(
                        lambda n=name, r=reduction, x=rows, y=columns: getattr(F, n)(
                            tensor(x, y, dtype=FP32, grad=True).sigmoid(),
                            tensor(x, y, dtype=FP32).sigmoid(),
                            reduction=r,
                        )
                    ),
                )
    yield "dropout", backward(lambda: F.dropout(tensor(512, 4096, grad=True), 0.1))
    for channels, size, kernel, stride in ((3, 224, 14, 14), (3, 224, 16, 16), (64, 56, 3, 1), (3, 224, 7, 2)):
        for dtype in (BF16, FP32):
            yield (
                f"conv2d {dtype} {channels}x{size} {kernel}/{stride}",
                backward(
                    lambda c=channels, s=size, k=kernel, t=stride, d=dtype: F.conv2d(
                        tensor(2, c, s, s, dtype=d, grad=True), tensor(128, c, k, k, dtype=d, grad=True), stride=t
                    )
                ),
            )
    for count in (1000, 100_000, 5_000_000):
        numbers = functools.partial(tensor, count, dtype=FP32)
        yield f"sort {count}", lambda f=numbers: f().sort()
        yield f"topk {count}", lambda f=numbers: f().topk(50)
        yield f"cumsum {count}", lambda f=numbers: f().cumsum(0)
        yield f"argmax {count}", lambda f=numbers: f().argmax()
        yield f"nonzero {count}", lambda n=count: torch.ones(n, dtype=torch.bool, device="cuda").nonzero()
        yield f"masked_select {count}", lambda n=count: tensor(n)[torch.ones(n, dtype=torch.bool, device="cuda")]
        yield f"unique {count}", lambda n=count: torch.arange(n, device="cuda").unique()
        yield f"multinomial {count}", lambda n=count: torch.multinomial(torch.ones(min(n, 100_000), device="cuda"), 1)
        yield (
            f"index_put {count}",
            lambda n=count: torch.zeros(n, device="cuda").index_put_(
                (torch.arange(n, device="cuda"),), torch.ones(n, device="cuda"), accumulate=True
            ),
        )
        yield (
            f"index_add {count}",
            lambda n=count: torch.zeros(n, device="cuda").index_add_(
                0, torch.arange(n, device="cuda"), torch.ones(n, device="cuda")
            ),
        )
        yield f"random permutation {count}", lambda n=count: torch.randperm(n, device="cuda")
        yield f"to float {count}", lambda n=count: tensor(n).float().double().half()
    yield "adamw foreach", lambda: step(foreach=True)
    yield "adamw fused", lambda: step(fused=True)
    yield "adamw for loop", lambda: step(foreach=False)
    yield "clip_grad_norm", lambda: torch.nn.utils.clip_grad_norm_(weights(), 1.0)
    yield "grouped products", grouped
    yield from quantized_operations()


def weights() -> list[torch.Tensor]:
    made = [tensor(512, 512, grad=True) for _ in range(4)] + [tensor(512, grad=True) for _ in range(4)]
    for weight in made:
        weight.grad = torch.ones_like(weight)
    return made


def step(**options: Any) -> None:
    optimizer = torch.optim.AdamW(weights(), **options)
    optimizer.step()
    optimizer.step()


def grouped() -> None:
    if hasattr(torch, "_grouped_mm"):
        ends = torch.tensor([64, 128, 192, 256], dtype=torch.int32, device="cuda")
        torch._grouped_mm(tensor(256, 512), tensor(4, 512, 1024), offs=ends)


def on_a_card() -> dict[str, list[int] | str]:
    """For each operation what was taken (positive) and given back (negative), in order."""

    def recorded(run: Callable[[], Any]) -> list[int]:
        torch.cuda.memory._record_memory_history(enabled=None)
        torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", max_entries=100_000)
        run()
        torch.cuda.synchronize()
        entries = torch.cuda.memory._snapshot()["device_traces"][0]
        signs = {"alloc": 1, "free_requested": -1}
        return [signs[entry["action"]] * entry["size"] for entry in entries if entry["action"] in signs]

    return taken(recorded)


def simulated() -> dict[str, list[int] | str]:
    from pytest_memleak.cards.allocator.trace import Action
    from pytest_memleak.cards.simulated.profiles import PROFILES
    from pytest_memleak.cards.simulated.simulation import Simulation

    simulation = Simulation([PROFILES["h200"]])
    simulation.on()
    found: list[int] = []
    signs = {Action.ALLOC: 1, Action.FREE: -1}

    def see(action: Action, address: int, size: int, stream: int) -> None:
        if action in signs:
            found.append(signs[action] * size)

    simulation.allocator(0).observe(see)

    def recorded(run: Callable[[], Any]) -> list[int]:
        found.clear()
        run()
        return list(found)

    return taken(recorded)


def taken(recorded: Callable[[Callable[[], Any]], list[int]]) -> dict[str, list[int] | str]:
    result: dict[str, list[int] | str] = {}
    gc.disable()  # what dies in cycles would be given back in the middle of another entry
    for name, run in operations():
        try:
            run()
            gc.collect()
            result[name] = recorded(run)
        except Exception as error:  # noqa: BLE001  # an operation that fails must not stop the others
            result[name] = f"{type(error).__name__}: {str(error).splitlines()[0]:.200}"
    return result


def peak(events: list[int]) -> int:
    level = highest = 0
    for event in events:
        level += event
        highest = max(highest, level)
    return highest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="record on the real card into this file")
    parser.add_argument("--compare", type=Path, help="compare the simulated card with such a file")
    chosen = parser.parse_args()
    if chosen.out:
        document = {
            "date": datetime.date.today().isoformat(),
            "card": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "bitsandbytes": bitsandbytes_version(),
            "command": "python benchmarks/operations.py --out …",
            "operations": on_a_card(),
        }
        chosen.out.write_text(json.dumps(document, indent=None, separators=(",", ":")))
        print(f"{len(document['operations'])} operations")
    if chosen.compare:
        real = json.loads(chosen.compare.read_text())["operations"]
        same = 0
        for name, mine in simulated().items():
            theirs = real.get(name)
            if mine == theirs:
                same += 1
            elif isinstance(mine, list) and isinstance(theirs, list):
                error = 100 * (peak(mine) / max(peak(theirs), 1) - 1)
                print(f"{name}: peak {error:+.2f} %\n   card      {theirs}\n   simulated {mine}")
            else:
                print(f"{name}: card {theirs}, simulated {mine}")
        print(f"{same} of {len(real)} alike")


if __name__ == "__main__":
    main()
