"""What the ranks of a node take of its memory when a model of 30B is loaded for FSDP2 and prepared by accelerate.

    python benchmarks/fsdp_node.py                      # Qwen3-30B-A3B, all eight ranks of a node, one after the other
    python benchmarks/fsdp_node.py --model qwen3-32b    # dense: no weight is put together from others on its way
    python benchmarks/fsdp_node.py --rank 3             # that rank alone, in this process

No GPU is needed, and no memory to speak of: each rank is played on a simulated card (pytest_memleak/ranks/played.py),
the checkpoint is a file of holes, and every figure is a prediction for the releases that are installed. transformers'
and accelerate's own code runs: `from_pretrained` with cpu_ram_efficient_loading, `Accelerator.prepare`, FSDP2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.real_sizes import qwen3_30b_a3b, qwen3_32b

GB = 1e9
SEED = "transformers#45649: ~60 GB a node as it should be, ~480 GB with zeros_like"


MODELS = {"qwen3-30b-a3b": qwen3_30b_a3b, "qwen3-32b": qwen3_32b}
LAYERS = {"qwen3-30b-a3b": "Qwen3MoeDecoderLayer", "qwen3-32b": "Qwen3DecoderLayer"}


def one_rank(rank: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true", FSDP_VERSION="2")

    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of

    simulation = simulation_of(cards_of(f"{given.ranks // given.nnodes}xh100"))
    simulation.on()
    import torch
    import transformers
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    from pytest_memleak import fixes
    from pytest_memleak.ranks.played import playing

    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {"rank": rank}
    began = time.monotonic()
    fixed = fixes.find("fsdp_init").fixed() if given.fixed else contextlib.nullcontext()
    with playing(rank, given.ranks, given.nnodes) as played, fixed:

        def tell(step: str, before: Any) -> None:
            now, most = played.host.take()
            growth, peak = now - before, most - before
            found[step] = {
                "committed": growth.committed,
                "committed_peak": peak.committed,
                "allocated_peak": peak.allocated,
                "mapped": growth.mapped,
                "mapped_peak": peak.mapped,
                "card": torch.cuda.memory_allocated(),
                "card_peak": torch.cuda.max_memory_allocated(),
            }
            torch.cuda.reset_peak_memory_stats()

        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            cpu_ram_efficient_loading=True,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[LAYERS[given.model]],
            reshard_after_forward=True,
        )
        accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=given.mixed_precision)
        start = played.host.now()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        tell("load", start)
        found["parameters"] = sum(one.numel() for one in model.parameters())
        found["on_meta"] = sum(one.numel() for one in model.parameters() if one.is_meta)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        model, optimizer = accelerator.prepare(model, optimizer)
        tell("prepare", start)
        found["shard"] = sum(one.to_local().numel() for one in model.parameters())
        found["doubt"] = simulation.unknowns.doubt()
    found["seconds"] = round(time.monotonic() - began, 1)
    found["resident_peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def in_a_process(rank: int, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each rank has one: accelerate keeps what it was told first."""
    command = [sys.executable, __file__, "--rank", str(rank), "--folder", str(folder)]
    command += ["--ranks", str(given.ranks), "--nnodes", str(given.nnodes)]
    command += ["--model", given.model, "--mixed-precision", given.mixed_precision]
    command += ["--fixed"] if given.fixed else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def all_ranks(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    last = given.ranks // given.nnodes - 1
    if not given.some:
        return [in_a_process(rank, given, folder) for rank in range(last + 1)]
    played = {rank: in_a_process(rank, given, folder) for rank in sorted({0, min(1, last), last})}
    return [played.get(rank) or played[1] | {"rank": f"{rank} (as 1)", "seconds": 0} for rank in range(last + 1)]


def table(ranks: list[dict[str, Any]]) -> str:
    """GB of 1000³, as the report of the bug has them."""
    rows = [
        "| rank | load: committed at its end | at its peak | mapped at its end | at its peak | "
        "prepare: committed at its peak | card at its peak | card at its end |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def figures(load: dict[str, int], prepare: dict[str, int]) -> list[int]:
        return [
            load["committed"],
            load["committed_peak"],
            load["mapped"],
            load["mapped_peak"],
            prepare["committed_peak"],
            prepare["card_peak"],
            prepare["card"],
        ]

    every = [figures(one["load"], one["prepare"]) for one in ranks]
    for one, row in zip(ranks, every, strict=True):
        rows.append(f"| {one['rank']} | " + " | ".join(f"{bytes_ / GB:,.2f}" for bytes_ in row) + " |")
    columns = list(zip(*every, strict=True))
    # Committed is each rank's own; what is mapped is the same file for all.
    node = [sum(columns[0]), sum(columns[1]), max(columns[2]), max(columns[3]), sum(columns[4])]
    rows.append("| **node** | " + " | ".join(f"**{bytes_ / GB:,.1f}**" for bytes_ in node) + " | | |")
    return "\n".join(rows)


def in_words(ranks: list[dict[str, Any]], given: argparse.Namespace) -> str:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "accelerate", "torch")
    )
    first, load = ranks[0], [one["load"] for one in ranks]
    committed, mapped = sum(one["committed"] for one in load), max(one["mapped"] for one in load)
    lines = [
        f"{given.model}; {versions}; mixed precision {given.mixed_precision}"
        f"{', with the fix fsdp_init' if given.fixed else ''}; predicted, GB of 1000³",
        f"{first['parameters']:,} parameters: {2 * first['parameters'] / GB:.1f} GB in bf16; {given.ranks} ranks on "
        f"{given.nnodes} node(s)",
        "",
        table(ranks),
        "",
        f"The node when its ranks have loaded: {committed / GB:.1f} GB committed by all of them together, and "
        f"{mapped / GB:.1f} GB of pages of mapped files, one copy for all. A sum of peaks is what it takes if they are "
        "reached at the same time.",
        SEED,
    ]
    lines += [f"rank {one['rank']} is INCONCLUSIVE: {one['doubt']}" for one in ranks if one["doubt"]]
    most = max(one["resident_peak"] for one in ranks)
    lines.append(
        f"{sum(one['seconds'] for one in ranks):.0f} s for all ranks, at most {most / GB:.2f} GB of this machine's "
        "memory at a time, pages of the checkpoint's file included"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(LAYERS), default="qwen3-30b-a3b")
    parser.add_argument("--ranks", type=int, default=8, help="of all nodes together")
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--fixed", action="store_true", help="with the reference fix fsdp_init")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is to be made")
    parser.add_argument("--rank", type=int, help="this one alone, in this process")
    parser.add_argument(
        "--some",
        action="store_true",
        help="play the first two ranks and the last one: those in between differ in nothing but their number",
    )
    parser.add_argument("--json", type=Path, help="where to write all figures, in bytes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch) / given.model
        if not (folder / "config.json").exists():
            from pytest_memleak.upstream.checkpoints import make_checkpoint

            make_checkpoint(MODELS[given.model](), folder, sparse=True, tokenizer=False)
        if given.rank is not None:
            print(json.dumps(one_rank(given.rank, given, folder)))
            return
        ranks = all_ranks(given, folder)
    if given.json:
        given.json.write_text(json.dumps(ranks, indent=1) + "\n", encoding="utf-8")
    print(in_words(ranks, given))


if __name__ == "__main__":
    main()
