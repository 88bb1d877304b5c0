"""Runs one list of programs on a GPU and on the simulated card, and sets the memory of both side by side.

    python benchmarks/truth.py --real --out real.json               # where a GPU is
    python benchmarks/truth.py --simulated --out simulated.json     # anywhere
    python benchmarks/truth.py --compare real.json simulated.json   # a Markdown table

Needs torch, transformers, accelerate, peft and bitsandbytes; no network. Every row runs in a process of its own, so
that it finds an empty allocator; one that fails is named and does not stop the others. A run that is named with
`--rows` is added to what the file already has. Whichever transformers is importable is used, and recorded.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from truth_rows import ROWS
from truth_table import compared

SCHEMA = "pytest-memleak-truth/1"
TIMEOUT = 300
PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "safetensors")
READINGS = {
    "requested_peak": "requested_bytes.all.peak",
    "allocated_peak": "allocated_bytes.all.peak",
    "reserved_peak": "reserved_bytes.all.peak",
    "requested": "requested_bytes.all.current",
    "allocated": "allocated_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "retries": "num_alloc_retries",
}


class HostPeak:
    """The most anonymous memory this process had, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostPeak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)
            if self._over.wait(0.02):
                return


def run_row(name: str, simulated: bool, folder: Path) -> dict[str, Any]:
    """In the child: runs one row and reads what it took."""
    import torch

    simulation = None
    if simulated:
        from pytest_memleak.cards.simulated.profiles import PROFILES
        from pytest_memleak.cards.simulated.simulation import Simulation

        simulation = Simulation([PROFILES["h200"]])
        simulation.on()
        simulation.presumptions.without_outliers().__enter__()  # until the process ends, as in a prediction
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: F401 (imports are not what is timed)

    row, device = ROWS[name], "cuda:0"
    prepared = row.prepare(folder)
    torch.manual_seed(0)
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats()
    kept, outcome, message = None, "fits", ""
    with HostPeak() as host:
        begun = time.monotonic()
        try:
            kept = row.run(device, prepared)
        except torch.OutOfMemoryError as error:
            outcome, message = "OutOfMemoryError", str(error).splitlines()[0]
        torch.cuda.synchronize()
        seconds = time.monotonic() - begun
    gc.collect()
    stats = torch.cuda.memory_stats()
    del kept
    found: dict[str, Any] = {"outcome": outcome, "seconds": round(seconds, 2)}
    found |= {ours: stats[theirs] for ours, theirs in READINGS.items()}
    found["host_anonymous_peak"] = host.bytes
    found["host_resident_peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if message:
        found["message"] = message
    if simulation is not None:
        found["decided_by_unknown_values"] = list(simulation.unknowns.decisions)
        found["placeholders_read"] = sum(simulation.unknowns.placeholders.values())
    found["machine"] = machine(simulated)
    return found


def machine(simulated: bool) -> dict[str, Any]:
    """What ran it."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "processors": os.cpu_count()}
    found |= {package: version(package) for package in PACKAGES}
    if not simulated:
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "card_total": properties.total_memory, "cuda": torch.version.cuda}
        found["context"] = properties.total_memory - torch.cuda.mem_get_info()[0]
    else:
        found["card"] = "simulated h200"
    return found


def version(name: str) -> str | None:
    try:
        if name == "transformers":
            # Another release may stand first on the path, without metadata of its own.
            import transformers

            return str(transformers.__version__)
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ImportError):
        return None


def child(name: str, simulated: bool, folder: str) -> tuple[dict[str, Any], str]:
    """What the child found, or what it said last."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    for variable in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        environment.pop(variable, None)
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        kind = "--simulated" if simulated else "--real"
        command = [sys.executable, __file__, kind, "--child", name, "--folder", folder, "--out", answer.name]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return {}, f"no end after {TIMEOUT} s"
        if done.returncode:
            return {}, "\n".join(done.stderr.strip().splitlines()[-12:]) or f"status {done.returncode}"
        return json.load(answer), ""


def run_all(names: list[str], simulated: bool, out: Path) -> int:
    record: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"rows": {}}
    record |= {"schema": SCHEMA, "kind": "simulated" if simulated else "real"}
    run = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            begun = time.monotonic()
            found, said = child(name, simulated, folder)
            failed += not found
            record["rows"][name] = (found or {"outcome": "failed", "message": said}) | run
            # Written row by row: a run that is cut short keeps what it has.
            out.write_text(json.dumps(record, indent=1) + "\n")
            print(_line(name, record["rows"][name], time.monotonic() - begun), flush=True)
    return 1 if failed else 0


def _line(name: str, found: dict[str, Any], wall: float) -> str:
    if found["outcome"] == "failed":
        return f"{name:26s} FAILED {wall:6.1f} s\n    " + found["message"].replace("\n", "\n    ")
    sizes = "  ".join(
        f"{words} {found[key] / 2**20:11.3f}"
        for words, key in (
            ("requested", "requested_peak"),
            ("allocated", "allocated_peak"),
            ("reserved", "reserved_peak"),
            ("end", "allocated"),
        )
    )
    doubt = "  UNKNOWN VALUES DECIDED" if found.get("decided_by_unknown_values") else ""
    times = f"{found['seconds']:6.1f} s ({wall:5.1f})"
    host = found["host_anonymous_peak"] / 2**30
    return f"{name:26s} {found['outcome']:5.5s} {times}  {sizes} MiB  host {host:.2f} GiB{doubt}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--real", action="store_true", help="on the GPU of this machine")
    what.add_argument("--simulated", action="store_true", help="on the simulated card")
    what.add_argument("--compare", nargs=2, type=Path, metavar=("REAL", "SIMULATED"), help="both, as a table")
    parser.add_argument("--out", type=Path, help="the JSON file to write or to add to")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help="these alone: " + ", ".join(ROWS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        real, simulated = (json.loads(path.read_text()) for path in arguments.compare)
        text, missed = compared(real, simulated)
        print(text)
        return 1 if missed else 0
    if arguments.out is None:
        parser.error("--out FILE.json is needed")
    if arguments.child:
        found = run_row(arguments.child, arguments.simulated, arguments.folder)
        arguments.out.write_text(json.dumps(found))
        return 0
    return run_all(arguments.rows or list(ROWS), arguments.simulated, arguments.out)


if __name__ == "__main__":
    sys.exit(main())
