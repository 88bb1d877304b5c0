"""What the plugin costs a suite that does not use it, and a marked test that does nothing. Prints ratios from one run.

    python benchmarks/idle.py [--rounds 5]

Both sides run alternately in fresh processes, so that what else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_EMPTY = "import pytest\n\n@pytest.mark.parametrize('number', range(3000))\ndef test_nothing(number): ...\n"
_WITH_TORCH = (
    "import pytest, torch\n\n@pytest.mark.parametrize('number', range(300))\n{mark}def test_nothing(number): ...\n"
)
_NO_TORCH = "\n\ndef test_torch_stays_out():\n    import sys\n    assert 'torch' not in sys.modules\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "test_empty.py")
        empty.write_text(_EMPTY + _NO_TORCH)
        with_plugin, without = _alternate(rounds, [[*_PLUGIN, str(empty)], ["-p", "no:memleak", str(empty)]])
        print(
            f"3000 empty tests, plugin loaded / not loaded: x{with_plugin / without:.3f} "
            f"({with_plugin:.2f} s / {without:.2f} s)"
        )
        print("torch was not imported by the plugin (asserted inside both runs)")
        for name, mark in (("max_peak", "@pytest.mark.max_peak('1G')\n"), ("max_leak", "@pytest.mark.max_leak\n")):
            marked, plain = Path(folder, f"test_{name}.py"), Path(folder, "test_plain.py")
            marked.write_text(_WITH_TORCH.format(mark=mark))
            plain.write_text(_WITH_TORCH.format(mark=""))
            one, none = _alternate(rounds, [[*_PLUGIN, str(marked)], [*_PLUGIN, str(plain)]])
            extra = (one - none) / 300 * 1000
            print(f"a {name} test that does nothing: +{extra:.2f} ms a test, the first one's set-up included")


# Where the package is only on the path, there is no entry point that loads it.
_PLUGIN = [] if os.environ.get("PYTEST_PLUGINS") is None else ["-p", "pytest_memleak.plugin"]


def _alternate(rounds: int, commands: list[list[str]]) -> list[float]:
    """The median time of each command."""
    times: list[list[float]] = [[] for _ in commands]
    for turn in range(rounds + 1):
        for taken, arguments in zip(times, commands, strict=True):
            started = time.perf_counter()
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if turn:  # the first turn compiles and fills caches
                taken.append(time.perf_counter() - started)
    return [statistics.median(taken) for taken in times]


if __name__ == "__main__":
    main()
