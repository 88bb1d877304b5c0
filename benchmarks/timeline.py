"""What it costs to record a test's memory over time: ratios from one run.

    python benchmarks/timeline.py                   # CPU tensors, and the simulated card
    python benchmarks/timeline.py --gpu             # where a GPU is

Each workload runs with and without a recorder, in turn, several times; of each the best counts. A workload is as long
as a test, since the recorder reads ever less often: the first second of a test is the dearest. The processor's time is
that of both threads, and holds on a machine that has other work, too; seconds on a clock do not.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pytest_memleak.meters import shared
from pytest_memleak.meters.gauge import Gauge
from pytest_memleak.meters.timeline import INTERVAL, SELDOM, Recorder, Source

ROUNDS = 7


def small_operations(device: str, count: int) -> Callable[[], None]:
    weights = [torch.randn(64, 64, device=device) for _ in range(8)]

    def run() -> None:
        x = torch.randn(8, 64, device=device)
        for number in range(count):
            x = torch.tanh(x @ weights[number % 8])
        _done(device)

    return run


def training(device: str, steps: int) -> Callable[[], None]:
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256, device=device) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters())

    def run() -> None:
        for _ in range(steps):
            model(torch.randn(64, 256, device=device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        _done(device)

    return run


def python_alone(count: int) -> Callable[[], None]:
    """Which never lets go of the interpreter by itself."""

    def run() -> None:
        total = 0
        for number in range(count):
            total += number * number

    return run


def _done(device: str) -> None:
    if device.startswith("cuda") and torch.version.cuda and torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def recorded(gauge: Gauge, interval: float) -> Iterator[Recorder]:
    recorder = Recorder([Source(gauge, gauge.kinds[0], gauge.device)], interval=interval)
    recorder.start()
    recorder.go("setup")
    recorder.phase("call")
    try:
        yield recorder
    finally:
        recorder.end()


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def both_times(work: Callable[[], None]) -> tuple[float, float]:
    """On the clock, and of the processor."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def compare(name: str, gauge: Gauge, interval: float, make: Callable[[int], Callable[[], None]]) -> None:
    for seconds in (0.2, 1.0, 5.0):
        count = 100
        while (took := timed(make(count))) < seconds / 2:
            count = int(count * min(10.0, 1.2 * seconds / max(took, 1e-6)))
        work = make(count)
        work()
        without, within, points = [], [], 0
        for _ in range(ROUNDS if seconds < 2 else 3):
            without.append(both_times(work))
            with recorded(gauge, interval) as recorder:
                within.append(both_times(work))
            points = len(recorder.curves[0].seconds)
        clock, processor = (
            min(times[which] for times in within) / min(times[which] for times in without) for which in (0, 1)
        )
        print(
            f"{name:20} {min(without)[0]:6.2f} s   with a timeline × {processor:.3f} of the processor's time, "
            f"× {clock:.3f} on the clock; {points} points"
        )


def overhead(gauge: Gauge) -> None:
    def empty() -> None:
        with recorded(gauge, INTERVAL):
            pass

    def reading() -> None:
        for _ in range(1000):
            gauge.now()

    print(f"a test that does nothing: {min(timed(empty) for _ in range(50)) * 1e6:.0f} µs more")
    print(f"a reading of {gauge.device}: {min(timed(reading) for _ in range(5)) * 1e3:.1f} µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, one thread")
    if parser.parse_args().gpu:
        device, gauge = "cuda:0", shared.accelerator("cuda", 0).gauge
        torch.zeros(1, device=device)
        _compare_all(device, gauge)
        return
    _compare_all("cpu", shared.cpu_tensors().gauge)
    print(f"a reading of host memory: {min(timed(shared.host_memory().now) for _ in range(100)) * 1e6:.1f} µs")
    from pytest_memleak.cards.simulated.card import SimulatedCard
    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of

    simulation = simulation_of(cards_of(""))
    simulation.on()
    _compare_all("cuda:0", SimulatedCard(simulation, named=False).gauges()[0].gauge)


def _compare_all(device: str, gauge: Gauge) -> None:
    print(device)
    overhead(gauge)
    for interval in (INTERVAL, SELDOM):
        print(f"every {1000 * interval:g} ms to begin with")
        compare("Python alone", gauge, interval, python_alone)
        compare("small operations", gauge, interval, lambda count: small_operations(device, count))
        compare("training steps", gauge, interval, lambda count: training(device, max(1, count // 20)))


if __name__ == "__main__":
    main()
