"""What a baseline of 10,000 tests takes to be compared with and to be written, and what it costs a test.

    python benchmarks/baseline.py [--tests 10000] [--rounds 5] [--out FILE]

Reading, comparing and writing are what a run does in the end, in one process, with a tenth of the tests changed. The
ratio is to what pytest takes to run as many tests that do nothing, without this plugin. The cost of a test is that of
tests that do nothing, with a baseline and without, alternately in fresh processes. Of those the processor's seconds are
told, which other work on the machine does not change much.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_memleak.hooks.baselines import write
from pytest_memleak.records.baselines import Baseline, Entry, Key
from pytest_memleak.records.baselines.attempts import Attempts
from pytest_memleak.records.baselines.ratchet import ALL, Changes, changes, compare
from pytest_memleak.records.baselines.terms import Terms

_EMPTY = "import pytest, torch\n\n@pytest.mark.parametrize('number', range(300))\ndef test_nothing(number): ...\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            *_of_a_file(Path(folder), options.tests, options.rounds),
            "",
            *_of_a_test(Path(folder), options.rounds),
        ]
    text = "\n".join([*_head(options.tests), *lines, ""])
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


def _head(tests: int) -> list[str]:
    load = os.getloadavg()[0]
    return [
        f"# A baseline of {tests:,} tests",
        "",
        f"`python benchmarks/baseline.py`: Python {platform.python_version()}; {os.cpu_count()} processors, load "
        f"{load:.1f} at the end. Medians.",
        "",
    ]


def _entries(tests: int) -> list[Entry]:
    """As a suite of transformers has them: long ids, parameters, now and then several cards."""
    made = []
    for number in range(tests):
        test = f"tests/models/model_{number % 97}/test_modeling.py::ModelTest::test_case_{number}[bf16 {number}-sdpa]"
        devices = [f"cuda:{index}" for index in range(2 if number % 10 == 0 else 1)]
        peaks = dict.fromkeys(devices, 512 * (number * 7919 % 4_000_003))
        made.append(Entry(Key(test, "simulated", "NVIDIA-H100-80GB-HBM3:17179869184", "2.13"), {}).with_peaks(peaks))
    return made


def _of_a_file(folder: Path, tests: int, rounds: int) -> list[str]:
    recorded = _entries(tests)
    path = folder / "baseline.txt"
    path.write_bytes(Baseline(recorded).render())
    terms = Terms(path, path.name, "benchmark", update=frozenset([ALL]))
    measured = [
        one.with_peaks({place: count + (512 if number % 10 == 0 else 0) for place, count in one.peaks.items()})
        for number, one in enumerate(recorded)
    ]

    def comparing() -> Changes:
        baseline, attempts = Baseline.read(path), Attempts()
        for entry in measured:
            for when in ("setup", "call", "teardown"):
                attempts.phase(entry.key.test, when, good=True, entry=entry if when == "teardown" else None)
        found = compare(baseline, attempts.measured, terms.allowed, unfinished=attempts.unfinished, whole=True)
        assert len(found.higher) == -(-tests // 10)
        return changes(found, terms.update)

    made = comparing()

    def writing() -> None:
        path.write_bytes(before)
        write(terms, made)

    before = path.read_bytes()
    compared, written = _medians(rounds, comparing), _medians(rounds, writing)
    (folder / "test_empty.py").write_text(_EMPTY.replace(", torch", "").replace("300", str(tests)))
    plain = _of_a_run(["-p", "no:memleak", "test_empty.py"], folder)
    both = compared[0] + written[0], compared[1] + written[1]
    rows = {
        "the file read, all tests' reports gathered and compared": compared,
        "a tenth of its entries changed: locked, read again, merged, written whole": written,
        "both": both,
        f"{tests:,} tests that do nothing, run by pytest": plain,
    }
    return [
        f"The file has {path.stat().st_size / 1e6:.1f} MB.",
        "",
        "| | seconds | of the processor |",
        "|---|---|---|",
        *(f"| {name} | {clock:.3f} | {processor:.3f} |" for name, (clock, processor) in rows.items()),
        f"| ratio of the last two | {both[0] / plain[0]:.3f} | {both[1] / plain[1]:.3f} |",
    ]


def _of_a_test(folder: Path, rounds: int) -> list[str]:
    """With the CPU as card, where no library is the card's."""
    (folder / "test_it.py").write_text(_EMPTY)
    (folder / "pytest.ini").write_text("[pytest]\n")
    commands = {
        "without": [],
        "with a baseline": ["--memleak-baseline=base.txt", "--memleak-update=new"],
        "in report mode": ["--memleak-mode=report"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, arguments in commands.items():
            _, taken = _of_a_run(["--gpu-backend=cpu", "test_it.py", *arguments], folder)
            if turn:  # the first turn fills caches
                times[name].append(taken)
    none = statistics.median(times.pop("without"))
    return [
        f"A test that does nothing takes {(statistics.median(taken) - none) / 300 * 1000:.2f} ms more {name}."
        for name, taken in times.items()
    ]


def _of_a_run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", *arguments]
    before, started = _processor_of_children(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - started, _processor_of_children() - before


def _processor_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _medians(rounds: int, what: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor: other work on the machine is in the first alone."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter(), time.process_time()
        what()
        taken.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    clock, processor = zip(*taken, strict=True)
    return statistics.median(clock), statistics.median(processor)


if __name__ == "__main__":
    main()
