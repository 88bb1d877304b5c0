"""Tests of random budgets on shared cards: what sharing gains over one test at a time, and that nothing runs out.

    python benchmarks/shared_cards.py --workers 8 --tests 200
    CUDA_VISIBLE_DEVICES=0,1 python benchmarks/shared_cards.py --workers 8 --tests 200

Each test promises a peak from a seeded draw, fills the card up to it, multiplies on it, and has some work on the host,
as a load of weights is. One run in one process and one with all workers take turns; the best of each counts, whole
commands with their starts. Then a worker is killed by SIGKILL in the middle of a test: its part must be free again and
all other tests must end. A test that runs out of memory is counted, whoever took too much.

Without a GPU (or with --fake) cards of 140 GiB are played by a file that refuses as a card does, with the sizes of the
tests and shorter work: that shows that it runs, not how fast a card is.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pytest_memleak.workers import driver
from pytest_memleak.workers.ledger import Ledger
from tests.workers import fake_cards
from tests.workers.fake_cards import GIB, FakeCards

ROOT = Path(__file__).resolve().parents[1]
SIZES = (1, 2, 4, 8, 16, 16, 24, 40, 60)

COMMON = """
import os, pytest
KILLED = os.environ.get("BENCHMARK_KILLS")

def kill_if_asked(number):
    if str(number) == KILLED and os.environ.get("PYTEST_XDIST_WORKER"):
        os.kill(os.getpid(), 9)
"""

REAL = """
import torch

@pytest.mark.parametrize("number, gib", [
    pytest.param(number, gib, marks=pytest.mark.max_peak(f"{gib}GiB")) for number, gib in enumerate(BUDGETS)
])
def test_of_some_size(number, gib):
    kept = [torch.zeros(1 << 28, dtype=torch.uint8, device="cuda") for _ in range(4 * gib - 1)]  # to 256 MiB below it
    kill_if_asked(number)
    for _ in range(4):
        weights = torch.empty(1 << 23).normal_()
        kept[0][: 1 << 25].copy_(weights.view(torch.uint8))
        square = kept[0][: 1 << 25].view(torch.bfloat16).view(4096, 4096)
        (square @ square).sum().item()
"""

FAKE = """
import time
from fake_plugin import CARDS

@pytest.mark.parametrize("number, gib", [
    pytest.param(number, gib, marks=pytest.mark.profiled_vram_gib(gib)) for number, gib in enumerate(BUDGETS)
])
def test_of_some_size(number, gib):
    key = f"GPU-{os.environ.get('CUDA_VISIBLE_DEVICES') or '0'}f00"
    CARDS.allocate(key, gib << 30)
    kill_if_asked(number)
    time.sleep(0.5)
    CARDS.allocate(key, -(gib << 30))
"""

PLUGIN = """
from pathlib import Path
from fake_cards import FakeCards
from pytest_memleak.workers import driver

CARDS = FakeCards(Path(__file__).with_name("cards.json"))
driver.find = lambda: CARDS

def pytest_configure(config):
    config.addinivalue_line("markers", "profiled_vram_gib(gib): what the test takes")
"""


class Suite:
    def __init__(self, folder: Path, options: argparse.Namespace, fake: bool) -> None:
        self._folder = folder
        numbers = random.Random(options.seed)
        budgets = [numbers.choice(SIZES) for _ in range(options.tests)]
        (folder / "test_it.py").write_text(f"BUDGETS = {budgets}\n" + COMMON + (FAKE if fake else REAL))
        self._args = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=out.xml"]
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        if fake:
            shutil.copy(str(fake_cards.__file__), folder)
            (folder / "fake_plugin.py").write_text(PLUGIN)
            FakeCards.make(folder / "cards.json", *[140 * GIB] * options.fake_cards)
            self._args += ["-p", "fake_plugin"]
        else:
            self._args.append("--gpu-backend=real")

    def run(self, *args: str, kills: int | None = None) -> tuple[float, dict[str, int]]:
        """Seconds, and how many tests came to which end."""
        environment = self._environment | ({} if kills is None else {"BENCHMARK_KILLS": str(kills)})
        began = time.perf_counter()
        output = subprocess.run([*self._args, *args], cwd=self._folder, env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        found = {"passed": 0, "out of memory": 0, "killed": 0, "other": 0}
        for case in ElementTree.parse(self._folder / "out.xml").iter("testcase"):
            text = " ".join(str(one.get("message")) + str(one.text) for one in case if one.tag in ("failure", "error"))
            if not text:
                found["passed"] += 1
            elif "OutOfMemory" in text or "out of memory" in text:
                found["out of memory"] += 1
            else:
                found["killed" if "crashed while running" in text else "other"] += 1
        if found["other"]:
            print(output.stdout[-3000:], output.stderr[-1000:])
        return seconds, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fake", action="store_true", help="play the cards, also where there are some")
    parser.add_argument("--fake-cards", type=int, default=1, help="how many are played")
    options = parser.parse_args()
    fake = options.fake or driver.find() is None
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder), options, fake)
        best = {"one at a time": float("inf"), "shared": float("inf")}
        for _ in range(options.rounds):
            for name, workers in (("one at a time", 0), ("shared", options.workers)):
                seconds, found = suite.run("-n", str(workers))
                best[name] = min(best[name], seconds)
                print(f"{name}: {seconds:.1f} s, {_told(found)}")
        _, found = suite.run("-n", str(options.workers), kills=options.tests // 2)
        print(f"shared, one worker killed: {_told(found)}")
        with Ledger().turn("this benchmark", 60.0) as left:
            print(f"processes that still hold something of a card: {len(left)}")
    cards = f"{options.fake_cards} played" if fake else os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    print(f"one at a time / {options.workers} workers that share (cards: {cards}):", end=" ")
    print(f"x{best['one at a time'] / best['shared']:.2f}, {options.tests} tests, seed {options.seed}")


def _told(found: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in found.items())


if __name__ == "__main__":
    main()
