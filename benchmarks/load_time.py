"""What the fix four_bit_load costs in time: loads without it, with it, and by upstream's own fixed release.

    python benchmarks/load_time.py --other FOLDER        # where transformers 5.3.0 is installed

Needs a CUDA device, transformers and bitsandbytes. `--other` goes to the front of a second process's PYTHONPATH, and
has upstream's fixed release: `pip install --target FOLDER --no-deps transformers==5.4.0`, and what that needs besides.
Two kinds of loads: of weights that are quantized to 4 bits on the way, and of weights that were quantized before, which
have to stay with their pool of threads. Both processes are there all the time, their loads alternate, each round in
another order, and the best of all rounds counts. Weights are zeros that take no disk.
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
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_REPLY = "load_time: "
_KINDS = ("quantized on the way", "quantized before")


class Worker:
    """A process that loads when it is told to, with the release of transformers that it finds."""

    def __init__(self, path: str | None) -> None:
        environment = dict(os.environ, TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [path, environment.get("PYTHONPATH")]))
        command = [sys.executable, __file__, "--worker"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **what: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # libraries print, too
            if line.startswith(_REPLY):
                return json.loads(line.removeprefix(_REPLY))
        raise SystemExit(f"a worker ended with status {self._process.wait()}; what it said stands above")

    def end(self) -> None:
        self._process.communicate()


def work() -> None:
    """Answers what is asked on standard input, a line each."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    ThreadPoolExecutor.submit = _Handed.submit  # type: ignore[method-assign,assignment]
    for line in sys.stdin:
        what = json.loads(line)
        print(_REPLY + json.dumps(_DOES[what.pop("do")](**what)), flush=True)


def describe(device: str) -> str:
    import bitsandbytes
    import torch
    import transformers

    card = torch.cuda.get_device_name(device) if device != "cpu" else "the CPU"
    versions = f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}"
    return f"transformers {transformers.__version__}, {versions}, {card}"


def make(size: str, layers: int | None, folder: str, device: str) -> list[str]:
    """One checkpoint of each kind."""
    from truth_models import llama

    from pytest_memleak.upstream.checkpoints import make_checkpoint

    config = llama(size)
    config.num_hidden_layers = layers or config.num_hidden_layers
    plain = make_checkpoint(config, Path(folder, "plain"), sparse=True, tokenizer=False)
    before = str(Path(folder, "quantized"))
    with mended():
        _load(str(plain), device, on_the_way=True).save_pretrained(before)
    return [str(plain), before]


def load(folder: str, device: str, on_the_way: bool, fix: bool) -> dict[str, float]:
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    # Entered before the clock runs: it asks which release there is, some milliseconds that a program spends once.
    with mended() if fix else contextlib.nullcontext():
        handed, start = _Handed.count, time.perf_counter()
        model = _load(folder, device, on_the_way)
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
    del model
    peak = torch.cuda.max_memory_allocated(device) if device != "cpu" else 0
    return {"seconds": seconds, "peak": peak, "handed": _Handed.count - handed}


def mended() -> AbstractContextManager[object]:
    from pytest_memleak import fixes

    return fixes.find("four_bit_load").fixed()


def _load(folder: str, device: str, on_the_way: bool) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)} if on_the_way else {}
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, dtype="bfloat16", **how)


class _Handed(ThreadPoolExecutor):
    """How many jobs all pools of the process have got."""

    count = 0
    found = ThreadPoolExecutor.submit

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        _Handed.count += 1
        return _Handed.found(self, *args, **kwargs)


_DOES = {"describe": describe, "make": make, "load": load}


def measure(arguments: argparse.Namespace) -> None:
    workers = {"installed": Worker(None)}
    if arguments.other:
        workers["other"] = Worker(arguments.other)
    for name, worker in workers.items():
        print(f"{name}: {worker.ask(do='describe', device=arguments.device)}", flush=True)
    ways = {"without": ("installed", False), "with": ("installed", True), "other": ("other", False)}
    ways = {way: (name, fix) for way, (name, fix) in ways.items() if name in workers}
    with tempfile.TemporaryDirectory() as made:
        folders = workers["installed"].ask(
            do="make", size=arguments.size, layers=arguments.layers, folder=made, device=arguments.device
        )
        for kind, folder in zip(_KINDS, folders, strict=True):
            best: dict[str, Any] = {}
            for number in range(arguments.rounds + 1):  # the first of each is slower, and never the best
                order = list(ways.items())
                for way, (name, fix) in order[number % len(order) :] + order[: number % len(order)]:
                    what = {"folder": folder, "device": arguments.device, "on_the_way": kind == _KINDS[0], "fix": fix}
                    found = workers[name].ask(do="load", **what)
                    best[way] = min(best.get(way, found), found, key=lambda one: one["seconds"])
            _tell(kind, best)
    for worker in workers.values():
        worker.end()


def _tell(kind: str, best: dict[str, Any]) -> None:
    print(f"\n{kind}")
    for way, found in best.items():
        ratio = best["with"]["seconds"] / found["seconds"]
        took = f"{found['seconds']:8.3f} s, peak {found['peak'] / 1e6:10,.1f} MB, {found['handed']} tensors by threads"
        print(f"  {way:<8} {took}; with the fix it is ×{ratio:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", help="a folder with another release of transformers, upstream's own fixed one")
    parser.add_argument("--size", default="Llama-3.1-8B", help="one of truth_models.py")
    parser.add_argument("--layers", type=int, help="so many of its layers alone: for a dry run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda:0", help="cpu: for a dry run")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work() if arguments.worker else measure(arguments)


if __name__ == "__main__":
    main()
