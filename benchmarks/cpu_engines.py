"""What the two engines for CPU tensors cost and how near they come to the truth. All ratios are from one run.

    python benchmarks/cpu_engines.py

Cost: training steps of small Llama models with random weights, in processes of their own (the exact engine stays in
place once loaded) that take turns, so that a busy machine slows all of them alike. Truth: the events of torch's own
profiler, which the CPU allocator reports.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from small_llama import training_step
from torch.profiler import ProfilerActivity, profile

from pytest_memleak.events import garbage
from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.dispatch import DispatchTracker
from pytest_memleak.events.engine import CpuEngine

Step = Callable[[], object]
STEPS = 30
TURNS = 3

MODELS = {
    "tiny (hidden 64, 2 layers, 8 tokens)": (64, 2, 500, 1, 8),
    "small (hidden 256, 4 layers, 2 x 128 tokens)": (256, 4, 4000, 2, 128),
}


class Tracked(AbstractContextManager["Tracked"]):
    def __init__(self, engine: CpuEngine) -> None:
        self.engine = engine

    def __enter__(self) -> Tracked:
        self.engine.begin()
        return self

    def __exit__(self, *raised: object) -> None:
        self.engine.end()


def median_seconds(step: Step, around: AbstractContextManager[object]) -> float:
    for _ in range(3):
        step()
    garbage.settle()  # as around a test: what is adopted is then found among few objects
    times = []
    with around:
        for _ in range(STEPS):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
    return statistics.median(times)


def time_one_engine(name: str) -> None:
    """Prints the seconds of each workload under one engine."""
    engine = {"base": lambda: None, "exact": CpuAllocator.load, "dispatch": DispatchTracker}[name]()
    works = {label: training_step(*sizes) for label, sizes in MODELS.items()}
    works["1000 allocations"] = lambda: [torch.empty(10) for _ in range(1000)]
    print(
        json.dumps(
            {label: median_seconds(work, Tracked(engine) if engine else nullcontext()) for label, work in works.items()}
        )
    )


def cost() -> None:
    runs: dict[str, list[dict[str, float]]] = {"base": [], "exact": [], "dispatch": []}
    for _ in range(TURNS):
        for name, results in runs.items():
            done = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True, text=True)
            results.append(json.loads(done.stdout))
    for label in runs["base"][0]:
        best = {name: min(result[label] for result in results) for name, results in runs.items()}
        base = best["base"]
        ratios = ", ".join(f"{name} x{best[name] / base:.3f}" for name in ("exact", "dispatch"))
        print(f"  {label}: base {base * 1e3:.2f} ms, {ratios}")


def true_peak(work: Step) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    del kept
    level = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        level += event["args"]["Bytes"]
        peak = max(peak, level)
    return peak


def peak_by(engine: CpuEngine, work: Step) -> int:
    with Tracked(engine):
        engine.take_peak()
        base = engine.current()
        kept = work()
        peak = engine.take_peak() - base
    del kept
    return peak


def accuracy() -> None:
    convolution, image = torch.nn.Conv2d(16, 32, 3), torch.randn(8, 16, 64, 64)
    lstm, sequence = torch.nn.LSTM(256, 256), torch.randn(50, 16, 256)
    query, matrix = torch.randn(2, 8, 512, 64), torch.randn(512, 512)
    operations: dict[str, Step] = {
        "conv2d": lambda: convolution(image),
        "LSTM": lambda: lstm(sequence),
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query),
        "svd": lambda: torch.linalg.svd(matrix),
    }
    engines: dict[str, CpuEngine] = {"exact": CpuAllocator.load(), "dispatch": DispatchTracker()}
    for name, work in operations.items():
        with torch.no_grad():
            work()
            gc.collect()
            truth = true_peak(work)
            got = {engine: peak_by(source, work) for engine, source in engines.items()}
        errors = ", ".join(f"{engine} {100 * (peak - truth) / truth:+.1f} %" for engine, peak in got.items())
        print(f"  {name}: peak {truth:,} B by the profiler; {errors}")


def main() -> None:
    if len(sys.argv) > 1:
        time_one_engine(sys.argv[1])
        return
    print("Cost of a training step", flush=True)
    cost()
    print("Peaks against the truth", flush=True)
    accuracy()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
