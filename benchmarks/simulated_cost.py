"""What the simulated card costs in time and memory: of an operation, of a load, of a step of training.

    python benchmarks/simulated_cost.py --out benchmarks/results/DATE-simulated-cost.md

Needs torch, transformers, accelerate and bitsandbytes; no GPU and no network. Every row runs in a process of its own.
Operations are set against the same program on tensors of the meta device, which have shapes and nothing else: both in
turn in one process, so that their ratio holds on a busy machine, too. Seconds do not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from truth import PACKAGES, HostPeak, version
from truth_models import built, causal, llama, sparse_checkpoint

SIZES = ("Llama-3.2-1B", "Llama-3.1-8B", "33.7B", "Llama-3-70B")
ROUNDS = 15
TRIES = 3


# --- in the child -----------------------------------------------------------------------------------------------------


def simulated() -> None:
    from pytest_memleak.cards.simulated.profiles import MOST_MEMORY, PROFILES
    from pytest_memleak.cards.simulated.simulation import Simulation

    Simulation([replace(PROFILES["h200"], total=MOST_MEMORY)]).on()


def programs() -> dict[str, tuple[int, Callable[[str], Callable[[], object]]]]:
    """How many operations each has, and what makes it for a device."""
    import torch

    def repeated(count: int, make: Callable[[str], Callable[[], object]]) -> tuple[int, Any]:
        def on(device: str) -> Callable[[], object]:
            once = make(device)
            return lambda: [once() for _ in range(count)]

        return count, on

    def of(size: int, run: Callable[[Any], object]) -> tuple[int, Any]:
        def make(device: str) -> Callable[[], object]:
            numbers = torch.empty(size, size, device=device)
            return lambda: run(numbers)

        return repeated(200, make)

    def llama_layers(device: str) -> Callable[[], object]:
        config = llama("Llama-3.2-1B")
        config.num_hidden_layers = 4
        model = built(causal(config), device)
        ids = torch.zeros(1, 512, dtype=torch.long, device=device)
        return lambda: model(input_ids=ids, labels=ids).loss.backward()

    return {
        "a view": of(1024, lambda numbers: numbers.view(-1)),
        "a sum of two": of(1024, lambda numbers: numbers + numbers),
        "a sum in place": of(1024, lambda numbers: numbers.add_(1)),
        "a matrix product": of(1024, lambda numbers: numbers @ numbers),
        "a softmax": of(1024, lambda numbers: numbers.softmax(-1)),
        "a sum of two, of 16 × 16 known numbers": of(16, lambda numbers: numbers + numbers),
        "forward and backward of a Llama with four layers": (_counted(llama_layers("cuda")), llama_layers),
    }


def _counted(run: Callable[[], object]) -> int:
    """The operations that torch dispatches, those of a backward pass included."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counter.seen += 1
            return func(*args, **(kwargs or {}))

    run()
    with Counter():
        run()
    return Counter.seen


def operation(name: str) -> dict[str, Any]:
    count, make = programs()[name]
    runs = {device: make(device) for device in ("cuda", "meta")}
    seconds: dict[str, list[float]] = {device: [] for device in runs}
    for run in runs.values():
        run()
    gc.disable()
    for _ in range(ROUNDS):
        for device, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[device].append(time.perf_counter() - begun)
    found = {device: statistics.median(times) / count * 1e6 for device, times in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["cuda"], seconds["meta"], strict=True))
    return {"operations": count, **found, "ratio": ratio}


def load(size: str, folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    checkpoint = sparse_checkpoint(size, folder)
    options = {"device_map": {"": "cuda:0"}, "dtype": torch.bfloat16}
    options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True)
    return watched(lambda: AutoModelForCausalLM.from_pretrained(checkpoint, **options))


def train(size: str, folder: Path) -> dict[str, Any]:
    import torch

    config = llama(size)
    model = built(causal(config), "cuda:0")
    optimizer = torch.optim.AdamW(model.parameters())

    def step() -> None:
        ids = torch.randint(1, config.vocab_size, (1, 512), device="cuda:0")
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    found = watched(lambda: (step(), step()))
    return found | {"operations": 2 * _counted(step)}


def watched(run: Callable[[], object]) -> dict[str, Any]:
    import torch

    with HostPeak() as host:
        begun, used = time.perf_counter(), time.process_time()
        kept = run()
        seconds, processor = time.perf_counter() - begun, time.process_time() - used
    stats = torch.cuda.memory_stats()
    del kept
    return {
        "seconds": seconds,
        "processor": processor,
        "host": host.bytes,
        "operations": None,  # of a load in threads of its own nobody counts them
        "allocations": stats["allocation.all.allocated"],
        "allocated_peak": stats["allocated_bytes.all.peak"],
    }


# --- the tables -------------------------------------------------------------------------------------------------------


def child(*row: str) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *row], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(row)}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def operations_table(names: list[str]) -> list[str]:
    lines = ["| operation | µs on the simulated card | µs on meta | ratio |", "|---|---|---|---|"]
    for name in names:
        found = child("operation", name)
        counted = f" ({found['operations']} operations)" if name.startswith("forward") else ""
        lines.append(f"| {name}{counted} | {found['cuda']:.1f} | {found['meta']:.1f} | {found['ratio']:.2f} |")
        print(lines[-1], flush=True)
    return lines


def growth_table(kind: str, folder: str) -> list[str]:
    lines = [
        "| model | layers | operations | allocations | GiB on the card | seconds | of the processor | RAM in GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = []
    for size in SIZES:
        found = min((child(kind, size, folder) for _ in range(TRIES)), key=lambda one: one["processor"])
        layers, used = llama(size).num_hidden_layers, found["processor"]
        points.append((layers, used))
        operations = f"{found['operations']:,}" if found["operations"] else "-"
        lines.append(
            f"| {size} | {layers} | {operations} | {found['allocations']:,} | {found['allocated_peak'] / 2**30:.1f} | "
            f"{found['seconds']:.1f} | {used:.1f} | {found['host'] / 2**30:.2f} |"
        )
        print(lines[-1], flush=True)
    slope, start = statistics.linear_regression(*zip(*points, strict=True))
    off = max(abs(start + slope * layers - used) / used for layers, used in points)
    return [
        *lines,
        "",
        f"The processor's seconds are {start:.2f} + {slope:.3f} a layer, {100 * off:.0f} % off at most.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the Markdown file to write")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        kind, name, *rest = chosen.child
        simulated()
        run = {"load": load, "train": train}.get(kind)
        print(json.dumps(run(name, Path(*rest)) if run else operation(name)))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES if version(name))
    busy = os.getloadavg()[0]
    text = [
        "# What the simulated card costs",
        "",
        f"`{shlex.join(['python', *sys.argv])}`, Python {platform.python_version()}, {versions}; "
        f"{os.cpu_count()} processors, {busy:.1f} of them busy when it began.",
        "",
        f"An operation, median of {ROUNDS} rounds, in turn with the same on tensors without memory:",
        "",
    ]
    simulated()  # for the operations' names, and so that the native part is built before the clock runs
    text += operations_table(list(programs()))
    with tempfile.TemporaryDirectory() as folder:
        for kind, words in (
            ("load", "A load in 4 bits by `from_pretrained`, of a sparse checkpoint"),
            ("train", "Two steps of AdamW in bf16, 512 tokens, on a model that is there"),
        ):
            text += ["", f"{words}, the best of {TRIES} tries:", "", *growth_table(kind, folder)]
    if chosen.out:
        chosen.out.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
