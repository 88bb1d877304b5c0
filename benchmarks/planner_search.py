"""How long it takes to find the fastest of all plans that fit. Prints seconds, which hold for this machine alone.

    python benchmarks/planner_search.py [--rounds 3] [--capacity 8 24 80]

Decoders of 4 to 80 blocks, a chunk of weights each, whose blocks are alike or differ by up to a quarter, trained as a
whole or with adapters, on a card that computes as fast as copies come or several times as fast. The longest of all
these searches is told, too: of which model, and on which card.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.search import NothingFits, search
from tests.planner.fed import decoder

_LINKS = Links(2e10, 2e10, 4e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--capacity", type=float, nargs="*", default=[4, 8, 12, 24, 48, 80, 120, 200], metavar="GiB")
    options = parser.parse_args()
    _timed(4, False, False, 1.0, 8.0)  # the first search imports numpy
    for blocks in (4, 8, 16, 32, 48, 64, 80):
        for alike in (True, False):
            times = {
                case: min(_timed(blocks, alike, *case) for _ in range(options.rounds))
                for case in itertools.product((False, True), (1.0, 4.0), options.capacity)
            }
            (lora, speed, capacity), longest = max(times.items(), key=lambda item: item[1])
            model = f"{blocks:2} blocks that {'are alike' if alike else 'differ'}"
            worst = f"{'adapters' if lora else 'the whole model'}, speed {speed:g}, {capacity:g} GiB"
            middle = statistics.median(times.values())
            print(f"{model:24} {middle:.3f} s in the median, {longest:.3f} s at most ({worst})")


def _timed(blocks: int, alike: bool, lora: bool, speed: float, capacity: float) -> float:
    layout, profile = decoder(blocks, random=None if alike else Random(1), lora=lora, speed=speed)
    start = time.perf_counter()
    with contextlib.suppress(NothingFits):
        search([profile], layout, int(capacity * 1024**3), _LINKS)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
