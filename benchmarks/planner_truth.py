"""How far off the planner's estimates are: the peak of a step under many plans, estimated and taken. Figures of
docs/planner.md.

    python benchmarks/planner_truth.py --device cpu         # torch's tensors on the CPU, counted by the exact engine
    python benchmarks/planner_truth.py --device simulated   # anywhere
    python benchmarks/planner_truth.py --device cuda        # where a GPU is

Small models of text and of images (planner_models.py), trained as a whole and with LoRA. Estimates are over what was
taken by so many per cent. Text profiles stand beside for image batches: what a planner is off by that profiles nothing
else. Ends with status 1 if an estimate is more than 2 % too low or 5 % too high.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}

import torch
from planner_models import MODELS, SIDE, TRAININGS, built

import pytest_memleak
from pytest_memleak.planner.completing import admissible
from pytest_memleak.planner.estimate import highest
from pytest_memleak.planner.inputs import kinds
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.levels import Levels, levels_of
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.planning import Planner
from pytest_memleak.planner.running.training import Training

LOWEST, HIGHEST = -2.0, 5.0
"""Per cent: what the searcher's margin has to be good for, with much to spare."""
_CARD = "24G"
_MORE = 5
"""Plans that are drawn, beside those that are picked."""


def every_plan(layout: Layout) -> Iterator[Plan]:
    chunks, blocks = range(len(layout.chunks) + 1), range(layout.blocks + 1)
    pairs = [(persist, buffer) for persist in chunks for buffer in chunks]
    for persist, buffer in (pair for pair in pairs if not admissible(layout, Plan(*pair))):
        for swap in blocks:
            for checkpoint in blocks[: layout.blocks - swap + 1]:
                for offload in blocks[: layout.blocks - swap - checkpoint + 1]:
                    yield Plan(persist, buffer, swap, checkpoint, offload)


def picked_plans(layout: Layout) -> list[Plan]:
    """Each kind by itself and at its ends, some together, and some by chance; the same for each model of a size."""
    blocks, chunks = layout.blocks, len(layout.chunks)
    half = blocks // 2
    plans = [Plan(chunks, 0)]
    for mode in ("n_swap", "n_checkpoint", "n_offload"):
        plans += [Plan(chunks, 0, **{mode: count}) for count in (half, blocks)]
        plans.append(Plan(0, 2, **{mode: blocks}))
    plans += [Plan(0, 1), Plan(0, 2), Plan(0, chunks), Plan(chunks // 2, 1), Plan(chunks // 2, 2)]
    plans += [Plan(1, 2, 1, 1, 1), Plan(0, 1, 0, half, half), Plan(chunks // 2, 2, half, half)]
    wanted = dict.fromkeys(plan for plan in plans if not admissible(layout, plan))
    others = [plan for plan in every_plan(layout) if plan not in wanted]
    return [*wanted, *Random(0).sample(others, min(_MORE, len(others)))]


def adamw(weights: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=1e-4)


def on_host(model: torch.nn.Module, training: Training) -> int:
    """Bytes of optimizers' states that are the host's. Where the CPU is the card, torch counts them with the rest."""
    own = {id(weight) for weight in model.parameters()}
    return sum(
        kept.untyped_storage().nbytes()
        for optimizer in training.optimizers
        for weight, state in optimizer.state.items()
        if id(weight) not in own
        for kept in state.values()
        if isinstance(kept, torch.Tensor)
    )


def taken(
    planner: Planner, plan: Plan, batches: Mapping[str, Any], levels: Levels, device: torch.device
) -> dict[str, int]:
    """The peak of a step with each kind of batch."""
    found: dict[str, int] = {}
    with planner.train(plan) as training:
        # What the optimizer keeps is there from the second step on, for a tower from the second one with an image.
        first, *_ = wanted = list(reversed(batches))
        _step(planner, training, batches[first])
        for kind in wanted:
            _finished(device)
            levels.highest()
            _step(planner, training, batches[kind])
            _finished(device)
            not_its = on_host(planner.model, training) if device.type == "cpu" else 0
            found[kind] = levels.highest() - not_its
    return found


def _step(planner: Planner, training: Training, batch: Mapping[str, Any]) -> None:
    planner.model(**batch).loss.backward()
    training.step()


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _emptied(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def compared(name: str, training: str, device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each kind of batch."""
    model = built(name, options.blocks, training, getattr(torch, options.dtype), device)
    batches = own_batches(model, options.tokens, device)
    planner = Planner.of(model, make_optimizer=adamw, batches=batches)
    profiles = {profile.kind: profile for profile in planner.profiles}
    plans = list(every_plan(planner.layout) if options.every else picked_plans(planner.layout))
    rows: dict[str, dict[str, Any]] = {
        kind: {"model": name, "training": training, "batch": kind, "how": profile.how, "plans": []}
        for kind, profile in profiles.items()
    }
    with contextlib.closing(levels_of(device)) as levels:
        for plan in plans:
            for kind, peak in taken(planner, plan, batches, levels, device).items():
                own = highest([profiles[kind]], planner.layout, plan)
                by_text = highest([profiles["text"]], planner.layout, plan)
                one = {"plan": dict(vars(plan)), "taken": peak, "estimated": own.peak, "where": own.where}
                one |= {"error": _error(own.peak, peak), "error_by_text": _error(by_text.peak, peak)}
                rows[kind]["plans"].append(one)
    return list(rows.values())


def own_batches(model: Any, tokens: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Text and images; video is left out, which comes through the same tower."""
    from pytest_memleak.planner.inputs import batch

    wanted = [kind for kind in kinds(model) if kind in ("text", "image")]
    made = {kind: batch(model, kind, tokens=tokens, device=device, pixels=SIDE) for kind in wanted}
    return {kind: dict(one) | {"use_cache": False} for kind, one in made.items()}


def _error(estimated: int, peak: int) -> float:
    return 100 * (estimated / peak - 1)


def line(row: Mapping[str, Any]) -> str:
    plans = row["plans"]
    errors, by_text = ([one[key] for one in plans] for key in ("error", "error_by_text"))
    peaks = [one["taken"] / 2**20 for one in plans]
    worst = max(plans, key=lambda one: abs(one["error"]))
    text = _span(by_text) if row["batch"] != "text" else ""
    cells = [row["model"], row["training"], row["batch"], str(len(plans)), f"{min(peaks):.1f}–{max(peaks):.1f}"]
    where = f"{Plan(**worst['plan'])}: {worst['error']:+.2f}, {worst['where']}"
    return f"| {' | '.join([*cells, _span(errors), text, where])} |"


def _span(errors: list[float]) -> str:
    return f"{min(errors):+.2f} … {max(errors):+.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "simulated", "cuda"], required=True)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--trainings", nargs="+", choices=list(TRAININGS), default=["full", "lora"], metavar="TRAINING")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=640)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--every", action="store_true", help="all admissible plans of models of 4 blocks: hundreds")
    parser.add_argument("--json", type=Path, help="a file to write every plan's numbers to")
    options = parser.parse_args()
    if options.every:
        options.blocks = 4
    warnings.simplefilter("ignore")
    _import_all()
    columns = ["model", "training", "batch", "plans", "peaks, MiB", "error, %", "by the text profile, %", "worst plan"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    rows: list[dict[str, Any]] = []
    begun = time.monotonic()
    for name in options.models:
        for training in options.trainings:
            found = measured(name, training, options)
            rows += found
            print("\n".join(map(line, found)), flush=True)
            if options.json:
                options.json.write_text(json.dumps(record(options, rows), indent=1) + "\n")
    print(f"\n{time.monotonic() - begun:.0f} s, {json.dumps(versions(options))}")
    off = [one["error"] for row in rows for one in row["plans"] if not LOWEST <= one["error"] <= HIGHEST]
    print(f"{len(off)} of {sum(len(row['plans']) for row in rows)} outside of {LOWEST:+g} … {HIGHEST:+g} %")
    return 1 if off else 0


def _import_all() -> None:
    """What is there before the first model is no garbage: looking through it again for each plan would take longer
    than the steps do."""
    importlib.import_module("peft")
    importlib.import_module("transformers")
    gc.collect()
    gc.freeze()


def measured(name: str, training: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device("cpu" if options.device == "cpu" else "cuda:0")
    if options.device != "simulated":
        try:
            return compared(name, training, device, options)
        finally:
            _emptied(device)
    rows: list[dict[str, Any]] = []
    prediction = pytest_memleak.predict(lambda card: rows.extend(compared(name, training, device, options)), _CARD)
    if prediction.doubt:
        print(f"INCONCLUSIVE: {prediction.doubt}", flush=True)
    return rows


def versions(options: argparse.Namespace) -> dict[str, str]:
    found = {package: importlib.metadata.version(package) for package in ("torch", "transformers", "peft")}
    card = torch.cuda.get_device_name(0) if options.device == "cuda" else options.device
    return {"card": card, "torch": torch.__version__, **{name: found[name] for name in ("transformers", "peft")}}


def record(options: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    what = {name: value for name, value in vars(options).items() if name != "json"}
    return {"schema": "pytest-memleak-planner-truth/1", "options": what, "versions": versions(options), "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
