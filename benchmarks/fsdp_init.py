"""What the rank that waits for rank 0's weights commits, release by release, as it is and with the fix `fsdp_init`.

    python benchmarks/fsdp_init.py [PYTHON ...]

Each PYTHON is that of an environment with torch, transformers, accelerate and pytest; without one, this one's. Two
ranks on this machine's CPUs, gloo, accelerate's `prepare`. The rank that waits, committed host memory (RssAnon) in MiB:

load, load cast    the peak while a Llama of 520 MiB in fp16 is loaded, as it is stored and as bf16
prepare            the peak while that is prepared, as: beyond the rank's own shard + that shard; the cast one is
                   prepared with mixed precision, for which accelerate makes shards of fp32
NaN                the share of a small model's elements after its load, where memory nobody wrote to is filled with NaN
off by             the largest difference of a logit from those of a process that is alone
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fsdp_rank import Load, run

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_memleak.cases import fsdp_loads
from pytest_memleak.upstream.checkpoints import make_checkpoint

HEAD = """\
| transformers | accelerate | | load | load, cast | prepare | prepare, bf16 | NaN | off by |
|---|---|---|---|---|---|---|---|---|"""


def rows(python: str, large: str, small: str, folder: Path) -> list[str]:
    made = []
    for fix in (False, True):
        plain = Load(large, fix=fix, prepare=True)
        cast = Load(large, "bfloat16", fix=fix, prepare=True, mixed_precision="bf16")
        # The cast and what it leaves in a process's heap are kept from the others.
        (first, poisoned), (second,) = (
            run(loads, folder, python) for loads in ([plain, Load(small, fix=fix, poison=True)], [cast])
        )
        waits, casts = first[1], second[1]
        releases = waits["releases"]
        cells = [
            releases["transformers"],
            releases["accelerate"],
            "fixed" if fix else "as it is",
            *(mib(each["load"]["peak"]) for each in (waits, casts)),
            *(f"{mib(each['prepare']['peak'] - each['shard'])} + {mib(each['shard'])}" for each in (waits, casts)),
            f"{poisoned[1]['nan']:.0%}",
            f"{worst(first + second):g}",
        ]
        made.append(f"| {' | '.join(cells)} |")
        assert all(rank["wrong weights"] == 0 and rank["ranks agree"] for rank in first + second), (first, second)
    return made


def worst(ranks: list[dict[str, Any]]) -> float:
    return float(max(rank["off by"] for rank in ranks))


def mib(size: int) -> str:
    return f"{size / 2**20:.1f}"


def main(pythons: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large, small = (
            str(make_checkpoint(fsdp_loads.config(**sizes), folder / title, dtype="float16"))
            for title, sizes in (("large", fsdp_loads.LARGE), ("small", fsdp_loads.SMALL))
        )
        print(HEAD)
        for python in pythons or [sys.executable]:
            for row in rows(python, large, small, folder / "ranks"):
                print(row, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
