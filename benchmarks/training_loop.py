"""What `max_peak` and `max_leak` cost a training loop of a small Llama. Prints ratios from one run.

    python benchmarks/training_loop.py [--device cuda] [--steps 60] [--rounds 9]

The same loop alternates between measured and not measured in one process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from small_llama import training_step

from pytest_memleak.cards.card import choose
from pytest_memleak.marks import max_leak, max_peak
from pytest_memleak.measurement import Measurement
from pytest_memleak.plan import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    loop = _loop(options.device, options.steps)
    plans = {
        "max_peak": Plan(peak=max_peak("100G")("benchmark")),
        "max_peak and max_leak": Plan(
            peak=max_peak("100G")("benchmark"),
            leak=max_leak("1G")("benchmark"),
        ),
    }
    print(f"torch {torch.__version__}, {options.device}, {options.steps} steps a round, {options.rounds} rounds")
    for name, plan in plans.items():
        ratios = []
        loop()
        for turn in range(options.rounds):
            # Which of the two comes first alternates as well.
            sides = [lambda: _time(loop), lambda plan=plan: _time(lambda: _measured(plan, loop, options.device))]
            taken = [side() for side in (sides if turn % 2 else reversed(sides))]
            plain, measured = taken if turn % 2 else reversed(taken)
            ratios.append(measured / plain)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(
            f"{name}: x{statistics.median(ratios):.3f} of the loop without "
            f"(median; {spread}), windows opened and closed included"
        )


def _loop(device: str, steps: int) -> Callable[[], None]:
    torch.manual_seed(0)
    step = training_step(device=device)

    def loop() -> None:
        for _ in range(steps):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return loop


def _measured(plan: Plan, loop: Callable[[], None], device: str) -> None:
    measurement = Measurement(plan, choose("cpu" if device == "cpu" else "auto"))
    measurement.begin()
    measurement.body_begins()
    loop()
    measurement.body_ended()
    measurement.run_ended()
    measurement.close()


def _time(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
