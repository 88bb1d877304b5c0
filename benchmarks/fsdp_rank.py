"""One rank of FSDP loads, to be started by ``python -m torch.distributed.run``: what each load and prepare did to it.

    python -m torch.distributed.run --nproc-per-node 2 benchmarks/fsdp_rank.py FOLDER

FOLDER/loads.json is a list of `Load`s, as dictionaries; rank n writes what it found to FOLDER/rank-n.json, one
dictionary for each, which come after each other in the same process. `run` does all that.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Load:
    checkpoint: str
    dtype: str = "float16"
    fix: bool = False
    bug: str | None = None
    others: tuple[str, ...] = ()
    """Fixes that are in force as well, and came first."""
    poison: bool = False
    """Memory that nobody has written to reads as NaN. It commits pages, so that growth says nothing then."""
    scaled: bool = False
    """The class with a persistent buffer. Rank 0 triples it before it is sent."""
    prepare: bool = False
    mixed_precision: str = "no"


def run(loads: list[Load], folder: Path, python: str = sys.executable, ranks: int = 2) -> list[list[dict[str, Any]]]:
    """For each load what each rank found."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loads.json").write_text(json.dumps([dataclasses.asdict(load) for load in loads]), encoding="utf-8")
    root = Path(__file__).parents[1]
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), __file__]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the ranks ended with status {done.returncode}:\n{done.stderr[-4000:]}")
    found = [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
    return [list(each) for each in zip(*found, strict=True)]


def main(folder: Path) -> None:
    from pytest_memleak.cases import fsdp_loads

    os.environ.update(fsdp_loads.VARIABLES)
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    import accelerate  # noqa: F401 - what is imported on the way would count as the load's
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.LlamaForCausalLM(fsdp_loads.config(hidden_size=64, intermediate_size=64, num_hidden_layers=1))
    loads = [Load(**load) for load in json.loads((folder / "loads.json").read_text(encoding="utf-8"))]
    found = [_under_patches(load) for load in loads]
    (folder / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


def _under_patches(load: Load) -> dict[str, Any]:
    import torch

    from pytest_memleak import fixes

    with ExitStack() as undo:
        for other in load.others:
            undo.enter_context(fixes.find(other).fixed())
        if load.bug:
            undo.enter_context(fixes.find("fsdp_init").bug(load.bug))
        if load.fix:
            undo.enter_context(fixes.find("fsdp_init").fixed())
        if load.poison:
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = True
            undo.callback(torch.use_deterministic_algorithms, False)
        return _measured(load)


def _measured(load: Load) -> dict[str, Any]:
    from torch import distributed

    from pytest_memleak.cases.fsdp_loads import load as loaded
    from pytest_memleak.cases.fsdp_loads import scaled_llama

    kind = scaled_llama() if load.scaled else None
    distributed.barrier()
    grown = Grown()
    model = loaded(Path(load.checkpoint), load.dtype, kind)
    found = {"load": grown.read(), **census(model), "releases": releases()}
    if load.prepare:
        if load.scaled and distributed.get_rank() == 0:
            model.scale.mul_(3)
        try:
            found |= _prepared(load, model, kind)
        except AttributeError as error:
            if "device_mesh" not in str(error):
                raise
            found["error"] = str(error)
    return found


class Grown:
    """Committed host memory from here on: its peak, and what stays."""

    def __init__(self) -> None:
        from pytest_memleak.meters.host import HostMemory

        self._gauge = HostMemory()
        self._gauge.begin()
        self._gauge.take_peaks()
        self._start = self._gauge.now()["committed"]

    def read(self) -> dict[str, int]:
        from pytest_memleak.meters.host import settled

        peak = self._gauge.take_peaks()["committed"]
        self._gauge.end()
        return {"peak": peak - self._start, "stays": settled() - self._start}


def releases() -> dict[str, str]:
    return {package: metadata.version(package) for package in ("torch", "transformers", "accelerate")}


def census(model: Any) -> dict[str, Any]:
    import torch

    parameters = dict(model.named_parameters())
    real = [parameter for parameter in parameters.values() if not parameter.is_meta]
    elements = sum(parameter.numel() for parameter in parameters.values())
    rotary = model.model.rotary_emb.inv_freq
    pairs = torch.arange(0, 2 * rotary.numel(), 2, dtype=torch.float32)
    right = 10000.0 ** -(pairs / (2 * rotary.numel()))
    return {
        "bytes": sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()),
        "meta": sum(parameter.is_meta for parameter in parameters.values()) / len(parameters),
        "nan": sum(int(parameter.detach().isnan().sum()) for parameter in real) / elements,
        "dtypes": sorted({str(parameter.dtype) for parameter in parameters.values()}),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "rotary is right": not rotary.is_meta and bool(torch.allclose(rotary.float(), right, rtol=1e-2)),
    }


def _prepared(load: Load, model: Any, kind: Any) -> dict[str, Any]:
    import torch
    from torch import distributed

    from pytest_memleak.cases.fsdp_loads import VARIABLES, prepare
    from pytest_memleak.cases.fsdp_loads import load as loaded

    optimizer = torch.optim.AdamW(model.parameters())
    grown = Grown()
    model, optimizer = prepare(model, optimizer, mixed_precision=load.mixed_precision)
    found: dict[str, Any] = {"prepare": grown.read()}
    local = [parameter.to_local() for parameter in model.parameters()]
    found["shard"] = sum(part.numel() * part.element_size() for part in local)
    found["kind"] = type(model).__name__
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    found["optimized"] = sum(id(parameter) in known for parameter in model.parameters()) / len(local)

    for name in VARIABLES:  # as a process that is alone
        os.environ.pop(name)
    alone = loaded(Path(load.checkpoint), load.dtype, kind)
    os.environ.update(VARIABLES)
    if load.scaled:
        alone.scale.mul_(3)
        found["buffer is rank 0's"] = bool(torch.equal(model.scale, alone.scale))
    weights = dict(alone.named_parameters())
    # Before the forward, which leaves some parameters whole.
    found["wrong weights"] = sum(
        not torch.equal(parameter.full_tensor(), weights[name].to(parameter.dtype))
        for name, parameter in model.named_parameters()
    )
    tokens = torch.arange(5, 21)[None]
    with torch.no_grad():
        logits, right = (each(input_ids=tokens).logits.float() for each in (model, alone))
    every = [torch.empty_like(logits) for _ in range(distributed.get_world_size())]
    distributed.all_gather(every, logits)
    return found | {
        "off by": float((logits - right).abs().max()),
        "ranks agree": all(bool(torch.equal(logits, other)) for other in every),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
