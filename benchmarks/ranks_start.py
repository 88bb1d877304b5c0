"""What a test on ranks costs that does nothing, beside a bare torchrun of as many processes that import torch.

    python benchmarks/ranks_start.py --ranks 2 --rounds 5

Three commands take turns, and of each the best of all rounds counts: torchrun of a script that imports torch; pytest
with one test on ranks; pytest with three of them. The first ratio is of whole commands, the second of one more test.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEST = """
import pytest

@pytest.mark.ranks({ranks})
@pytest.mark.parametrize("number", range({tests}))
def test_nothing(number): ...
"""


def seconds(command: list[str], folder: str) -> float:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it
    began = time.perf_counter()
    subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bare.py").write_text("import torch\n")
        for tests in (1, 3):
            Path(folder, f"test_{tests}.py").write_text(TEST.format(ranks=options.ranks, tests=tests))
        python, ranks = sys.executable, str(options.ranks)
        pytest = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
        commands = {
            "bare": [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, "bare.py"],
            "one": [*pytest, "test_1.py"],
            "three": [*pytest, "test_3.py"],
            "import": [python, "-c", "import torch"],
        }
        best = {name: float("inf") for name in commands}
        for number in range(options.rounds):
            for name, command in commands.items():
                best[name] = min(best[name], seconds(command, folder))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    bare, more = best["bare"], (best["three"] - best["one"]) / 2
    print(f"import torch {best['import']:.2f} s; torchrun of {ranks} ranks {bare / best['import']:.2f} × that")
    print(f"pytest with one test on {ranks} ranks: {best['one'] / bare:.2f} × torchrun")
    print(f"one more such test: {more / bare:.2f} × torchrun")


if __name__ == "__main__":
    main()
