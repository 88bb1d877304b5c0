"""Loads under FSDP2 on real cards, through `Accelerator.prepare` and NCCL: as it is, and with the fix `fsdp_init`.

    torchrun --nproc-per-node 2 benchmarks/fsdp_init_gpu.py

Prints a JSON line for each rank of each load, and a table of all of them at the end. The model is a Llama of 1.6 GiB in
bf16 with random weights. Committed host memory is sampled every millisecond, and its figures are growth; of the card it
is torch's own peak of allocated memory. Two of the loads fill uninitialized memory with NaN: their sizes say nothing,
and stand in brackets. Without a card it runs a tiny model on CPUs, to see that it runs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import distributed

sys.path.insert(0, str(Path(__file__).parents[1]))

from pytest_memleak import fixes
from pytest_memleak.cases import fsdp_loads
from pytest_memleak.upstream.checkpoints import make_checkpoint

from fsdp_rank import Grown, releases  # isort: skip

CARD = torch.cuda.is_available()
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 16} if CARD else fsdp_loads.SMALL
STEPS = 3
COLUMNS = {
    "load": "load: host",
    "prepare": "prepare: host",
    "card": "prepare: card",
    "shard": "shard",
    "meta": "on meta",
    "nan": "NaN after load",
    "nan prepared": "NaN after prepare",
    "optimized": "optimized",
    "off by": "logits off by",
    "losses": "losses",
}


def main() -> None:
    rank = int(os.environ["RANK"])
    os.environ.update(fsdp_loads.VARIABLES)
    if CARD:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("cpu:gloo,cuda:nccl" if CARD else "gloo")
    with tempfile.TemporaryDirectory() as name:
        given = [name]
        distributed.broadcast_object_list(given, src=0)
        folders = [Path(given[0]) / title for title in ("tiny", "model")]
        if rank == 0:
            tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
            for folder, sizes in zip(folders, (tiny, SIZES), strict=True):
                make_checkpoint(fsdp_loads.config(**sizes), folder, dtype="bfloat16")
        distributed.barrier()
        one(folders[0], fix=False, mixed_precision="bf16", poison=False)  # libraries, kernels, communicators
        rows = []
        for fix in (False, True):
            for mixed_precision, poison in (("no", False), ("bf16", False), ("no", True)):
                row = one(folders[1], fix=fix, mixed_precision=mixed_precision, poison=poison)
                told = {"rank": rank, "fix": fix, "mixed precision": mixed_precision, "poison": poison} | row
                print(json.dumps(told), flush=True)
                rows.append(told)
        distributed.barrier()
    every: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, rows)
    if rank == 0:
        print(table(every), flush=True)
    distributed.destroy_process_group()


def one(folder: Path, *, fix: bool, mixed_precision: str, poison: bool) -> dict[str, Any]:
    with ExitStack() as undo:
        if fix:
            undo.enter_context(fixes.find("fsdp_init").fixed())
        if poison:
            torch.use_deterministic_algorithms(True, warn_only=True)
            undo.callback(torch.use_deterministic_algorithms, False)
        return measured(folder, mixed_precision)


def measured(folder: Path, mixed_precision: str) -> dict[str, Any]:
    distributed.barrier()
    grown = Grown()
    model = fsdp_loads.load(folder, "bfloat16")
    found: dict[str, Any] = {"load": grown.read()["peak"]}
    parameters = list(model.parameters())
    found["meta"] = sum(parameter.is_meta for parameter in parameters) / len(parameters)
    found["nan"] = nan_in(parameters)
    del parameters

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if CARD:
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if CARD else 0
    grown = Grown()
    model, optimizer = fsdp_loads.prepare(model, optimizer, mixed_precision=mixed_precision)
    found["prepare"] = grown.read()["peak"]
    found["card"] = torch.cuda.max_memory_allocated() - before if CARD else 0
    torch.use_deterministic_algorithms(False)

    local = [parameter.to_local() for parameter in model.parameters()]
    found["shard"] = sum(part.numel() * part.element_size() for part in local)
    found["nan prepared"] = nan_in([*local, *model.buffers()])
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found["optimized"] = sum(id(parameter) in known for parameter in model.parameters()) / len(local)
    del local
    found["off by"] = off_by(model, folder)
    tokens = torch.randint(0, 2000, (2, 256), generator=torch.Generator().manual_seed(0)).to(model.device)
    found["losses"] = []
    for _ in range(STEPS):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(round(float(loss.detach()), 4))
    del model, optimizer, loss
    gc.collect()
    if CARD:
        torch.cuda.empty_cache()
    return found | {"releases": releases()}


def nan_in(tensors: list[torch.Tensor]) -> float:
    """The share of their elements."""
    elements = sum(tensor.numel() for tensor in tensors)
    return sum(int(tensor.detach().isnan().sum()) for tensor in tensors if not tensor.is_meta) / elements


def off_by(model: Any, folder: Path) -> float:
    """How far the logits are from those of a process that is alone."""
    tokens = torch.arange(5, 21, device=model.device)[None]
    for name in fsdp_loads.VARIABLES:
        os.environ.pop(name)
    alone = fsdp_loads.load(folder, "bfloat16").to(model.device)
    os.environ.update(fsdp_loads.VARIABLES)
    with torch.no_grad():
        ours, right = (each(input_ids=tokens).logits.float() for each in (model, alone))
    return float((ours - right).abs().max())


def table(ranks: list[list[dict[str, Any]]]) -> str:
    first = ranks[0][0]
    card = torch.cuda.get_device_name() if CARD else "CPU"
    lines = [
        f"{len(ranks)} × {card}; " + ", ".join(f"{name} {release}" for name, release in first["releases"].items()),
        "",
        f"| | mixed precision | rank | {' | '.join(COLUMNS.values())} |",
        f"|{'---|' * (3 + len(COLUMNS))}",
    ]
    for loads in zip(*ranks, strict=True):
        for told in loads:
            cells = ["fixed" if told["fix"] else "as it is", told["mixed precision"], str(told["rank"])]
            lines.append(f"| {' | '.join([*cells, *(cell(told, name) for name in COLUMNS)])} |")
    return "\n".join(lines)


def cell(told: dict[str, Any], name: str) -> str:
    value = told[name]
    if name in ("load", "prepare", "card", "shard"):
        size = f"{value / 2**20:.0f} MiB"
        return f"({size})" if told["poison"] and name != "shard" else size
    if name in ("meta", "nan", "nan prepared", "optimized"):
        return f"{value:.0%}"
    return f"{value:g}" if name == "off by" else ", ".join(map(str, value))


if __name__ == "__main__":
    main()
