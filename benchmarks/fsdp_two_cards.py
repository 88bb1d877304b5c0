"""FSDP2 by `Accelerator.prepare` and three steps of training of a Llama of 1632 MiB: on two cards, or on none.

    torchrun --nproc-per-node 2 benchmarks/fsdp_two_cards.py --mixed-precision bf16
    python benchmarks/fsdp_two_cards.py --simulated --mixed-precision bf16

Both do the same steps and print one line of JSON for each rank, in bytes: to be laid side by side. The first is
measured by torch's counters and by Linux's of anonymous pages, the second is predicted on a simulated H200 for each
rank, one after the other. What NCCL takes for itself is in neither: that is the driver's, and not of torch's allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RANKS = 2
STEPS = 3
HostLevels = Callable[[], tuple[int, int]]
"""Committed bytes: now, and at most since the last call."""


def checkpoint(folder: Path) -> None:
    from transformers import LlamaConfig

    from pytest_memleak.upstream.checkpoints import make_checkpoint

    config = LlamaConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=8192,
    )
    make_checkpoint(config, folder, sparse=True, tokenizer=False)


def card() -> dict[str, int]:
    """The peaks are those since the last call."""
    import torch

    stats = torch.cuda.memory_stats()
    found = {
        "requested_peak": stats["requested_bytes.all.peak"],
        "allocated_peak": torch.cuda.max_memory_allocated(),
        "reserved_peak": torch.cuda.max_memory_reserved(),
        "allocated": torch.cuda.memory_allocated(),
    }
    torch.cuda.reset_peak_memory_stats()
    return found


def steps(folder: Path, mixed_precision: str, host: HostLevels) -> dict[str, Any]:
    """What a rank does, whichever way it came to be one."""
    import torch
    import transformers
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

    transformers.utils.logging.disable_progress_bar()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        reshard_after_forward=True,
    )
    accelerator = Accelerator(fsdp_plugin=plugin, mixed_precision=mixed_precision)
    accelerator.wait_for_everyone()
    torch.manual_seed(0)
    gc.collect()
    card()
    found: dict[str, Any] = {}
    before, _ = host()

    def tell(step: str) -> None:
        torch.cuda.synchronize()
        now, peak = host()
        found[step] = card() | {"committed": now - before, "committed_peak": peak - before}

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    tell("load")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer = accelerator.prepare(model, optimizer)
    tell("prepare")
    ids = torch.randint(0, 8000, (2, 256), device=accelerator.device)
    for step in range(1, STEPS + 1):
        loss = model(input_ids=ids, labels=ids).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        del loss
        tell(f"step {step}")
    return found


@contextlib.contextmanager
def measured() -> Iterator[HostLevels]:
    from pytest_memleak.meters.host import HostMemory

    memory = HostMemory()
    memory.begin()
    try:
        yield lambda: (memory.now()["committed"], memory.take_peaks()["committed"])
    finally:
        memory.end()


@contextlib.contextmanager
def predicted(rank: int) -> Iterator[HostLevels]:
    from pytest_memleak.cards.simulated.process import simulation_of
    from pytest_memleak.cards.simulated.profiles import cards_of
    from pytest_memleak.ranks.played import playing

    simulation_of(cards_of(f"{RANKS}xh200")).on()
    with playing(rank, RANKS) as played:

        def levels() -> tuple[int, int]:
            now, peak = played.host.take()
            return now.committed, peak.committed

        yield levels


def run(rank: int, given: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(ACCELERATE_USE_FSDP="true", FSDP_CPU_RAM_EFFICIENT_LOADING="true", FSDP_VERSION="2")
    if not given.simulated:
        # Before anything is imported that looks for one: each rank works on its own card.
        import torch

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with predicted(rank) if given.simulated else measured() as host:
        import accelerate
        import torch
        import transformers

        found = {
            "rank": rank,
            "how": "predicted" if given.simulated else "measured",
            "card": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "accelerate": accelerate.__version__,
            "mixed_precision": given.mixed_precision,
            **steps(given.folder, given.mixed_precision, host),
        }
        print(json.dumps(found), flush=True)
        if not given.simulated:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="no GPU is needed, nor torchrun")
    parser.add_argument("--mixed-precision", default="no", choices=("no", "bf16"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "fsdp-two-cards")
    parser.add_argument("--rank", type=int, help="with --simulated: this one alone, in this process")
    given = parser.parse_args()
    rank = given.rank if given.simulated else int(os.environ["RANK"])
    if (given.folder / "config.json").exists() or (rank or 0) > 0:
        pass  # of several ranks the first one makes it, and the others wait for it
    else:
        checkpoint(given.folder)
    if rank is not None:
        run(rank, given)
        return
    for one in range(RANKS):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--rank", str(one)], check=True)


if __name__ == "__main__":
    main()
