"""What it costs a test to reserve its part of a card that is free. Prints milliseconds and ratios from one run.

    python benchmarks/reservation.py [--tests 300] [--rounds 5]

First a reservation alone, taken and given back, while so many other processes tell what they hold: this is what is
read each time. Then whole runs of empty tests in one worker, with the reservation and without (--memleak-share=off),
in turn. The driver is the machine's, or one that answers at once where there is none.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pytest_memleak.workers import driver
from pytest_memleak.workers.driver import Device, Driver
from pytest_memleak.workers.need import Bytes
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import visible

ROOT = Path(__file__).resolve().parents[1]
GIB = 1024**3


class Constant:
    """A driver whose card nobody uses."""

    def devices(self) -> tuple[Device, ...]:
        return (Device("GPU-c", "a card that is not there", 140 * GIB),)

    def used(self, key: str) -> int:
        return 0

    def processes(self, key: str) -> Mapping[int, int] | None:
        return {}


PLUGIN = """
import sys
sys.path.insert(0, {benchmarks!r})
from pytest_memleak.workers import driver
if driver.find() is None:
    from reservation import Constant
    driver.find = Constant

def pytest_configure(config):
    config.addinivalue_line("markers", "profiled_vram_gib(gib): what the test takes")
"""
EMPTY = """
import pytest

@pytest.mark.profiled_vram_gib(1)
@pytest.mark.parametrize("number", range({tests}))
def test_nothing(number): ...
"""


def there() -> Driver:
    return driver.find() or Constant()


def _hold(ready: Any, until: Any) -> None:
    reservations = Reservations(there(), [], "other")
    reservations.take("test_of_another_worker", Bytes(GIB, ""), visible("0", there().devices()), 60.0)
    ready.release()
    until.wait()


@contextmanager
def others(count: int) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ready, until = context.Semaphore(0), context.Event()
    processes = [context.Process(target=_hold, args=(ready, until)) for _ in range(count)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    yield
    until.set()
    for process in processes:
        process.join()


def alone(rounds: int) -> list[float]:
    """Milliseconds of each reservation."""
    reservations, cards = Reservations(there(), [], "gw0"), visible("0", there().devices())
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        reservations.take("test_it.py::test_nothing", Bytes(GIB, ""), cards, 0.0)
        reservations.give_back()
        taken.append(1000 * (time.perf_counter() - began))
    reservations.close()
    return taken


def whole_run(folder: str, *args: str) -> tuple[float, float]:
    """Seconds by the clock and of the processors: on a machine that is busy with others the latter tell more."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "plugin", "-n", "1", *args]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"card: {there().devices()[0].name}; driver: {type(there()).__name__}")
    for count in (0, 7):
        with others(count):
            taken = alone(options.tests)
        print(
            f"a reservation beside {count} other processes: {statistics.median(taken):.2f} ms "
            f"(nine of ten below {statistics.quantiles(taken, n=10)[-1]:.2f} ms)"
        )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "plugin.py").write_text(PLUGIN.format(benchmarks=str(Path(__file__).parent)))
        Path(folder, "test_empty.py").write_text(EMPTY.format(tests=options.tests))
        times: dict[str, list[tuple[float, float]]] = {"equal": [], "off": []}
        for _ in range(options.rounds):
            for share, found in times.items():
                found.append(whole_run(folder, f"--memleak-share={share}"))
    for which, what in enumerate(("by the clock", "of the processors")):
        with_it, without = (min(one[which] for one in found) for found in times.values())
        extra = 1000 * (with_it - without) / options.tests
        print(
            f"{options.tests} empty tests in one worker, with / without, {what}: x{with_it / without:.3f} "
            f"({with_it:.2f} s / {without:.2f} s), {extra:+.2f} ms a test"
        )


if __name__ == "__main__":
    main()
