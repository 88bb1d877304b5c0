"""Records what CUDA's caching allocator does in real runs, for the emulation to be checked against.

    python benchmarks/record_traces.py --out fixtures/traces

Needs a CUDA device of at least 24 GB, torch and transformers, for some workloads also peft and bitsandbytes; no
network. Every workload runs in a process of its own, so that it finds an empty allocator; one that fails is named and
does not stop the others. `--cpu` runs the workloads tiny and unrecorded, to see that they run at all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trace_recorder import SETTINGS, Recorder
from trace_workloads import MIB, WORKLOADS

from pytest_memleak.cards.allocator.trace import SUFFIX, Action, read_trace

TIMEOUT = 120


def record(name: str, out: Path, cpu: bool) -> None:
    """In the child: runs one workload, and leaves its trace behind."""
    workload = WORKLOADS[name]
    recorder = Recorder("cpu" if cpu else "cuda:0")
    workload.run(recorder, cpu)
    if recorder.recording:
        recorder.finish(out / f"{name}{SUFFIX}", name, workload.note)


def line(path: Path) -> str:
    """What a trace holds, for a reader of the terminal."""
    header, events = (trace := read_trace(path)).header, trace.events
    stats = header["stats"]
    allocations = sum(event.action is Action.ALLOC for event in events)
    allocated, reserved = (stats[f"{name}_bytes.all.peak"] / MIB for name in ("allocated", "reserved"))
    return (
        f"{allocations:6d} allocations, {len(events):6d} events, peaks: allocated {allocated:.1f} MiB, "
        f"reserved {reserved:.1f} MiB, "
        f"retries {stats['num_alloc_retries']}, refused {stats['num_ooms']}, {path.stat().st_size / 1024:.0f} KiB"
    )


def run_all(names: list[str], out: Path, cpu: bool) -> int:
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        for variable in (SETTINGS, "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
            environment.pop(variable, None)
        if WORKLOADS[name].settings:
            environment[SETTINGS] = WORKLOADS[name].settings
        command = [sys.executable, __file__, "--child", name, "--out", str(out), *(["--cpu"] if cpu else [])]
        begun = time.monotonic()
        try:
            child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
            said = child.stderr.strip().splitlines()[-12:] if child.returncode else []
            outcome = "ok" if child.returncode == 0 else f"FAILED ({child.returncode})"
        except subprocess.TimeoutExpired:
            said, outcome = [], f"FAILED (no end after {TIMEOUT} s)"
        good = outcome == "ok"
        failed += not good
        shown = line(out / f"{name}{SUFFIX}") if good and not cpu else ""
        print(f"{name:20s} {outcome} {time.monotonic() - begun:5.1f} s  {shown}", flush=True)
        for text in said:
            print(f"    {text}", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder for the traces")
    parser.add_argument("--only", nargs="+", choices=sorted(WORKLOADS), help="these workloads alone")
    parser.add_argument("--cpu", action="store_true", help="tiny and unrecorded, to see that the workloads run")
    parser.add_argument("--child", choices=sorted(WORKLOADS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        record(arguments.child, arguments.out, arguments.cpu)
        return 0
    return 1 if run_all(arguments.only or list(WORKLOADS), arguments.out, arguments.cpu) else 0


if __name__ == "__main__":
    sys.exit(main())
