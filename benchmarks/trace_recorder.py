"""Takes down what the caching allocator of this process does; see record_traces.py."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_memleak.cards.allocator.trace import Action, Event, Trace, from_snapshot, write_trace

SETTINGS = "PYTORCH_CUDA_ALLOC_CONF"


@dataclass
class Recorder:
    """Marks in the allocator's own history what that does not tell: caches emptied, caps set, peaks reset."""

    device: str
    marks: list[Event] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)  # what is alive at the end, so that the last figures say something
    total: int = 0
    free: int = 0

    @property
    def recording(self) -> bool:
        return self.device != "cpu"

    def start(self) -> None:
        import torch

        if not self.recording:
            return
        torch.cuda.init()
        self.free, self.total = torch.cuda.mem_get_info()
        if torch.cuda.memory_reserved():
            raise RuntimeError("the allocator holds memory before the recording begins")
        torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", max_entries=5_000_000)
        emptied = torch.cuda.empty_cache

        def empty_cache() -> None:
            self.mark(Event(Action.EMPTY_CACHE))
            emptied()

        torch.cuda.empty_cache = torch.cuda.memory.empty_cache = empty_cache
        torch.accelerator.empty_cache = empty_cache

    def mark(self, event: Event) -> None:
        import torch

        if self.recording:
            torch.cuda.memory._snapshot()
            self.marks.append(event)

    def cap(self, size: int) -> None:
        import torch

        if self.recording:
            fraction = size / self.total
            self.mark(Event(Action.CAP, int(fraction * self.total)))
            torch.cuda.set_per_process_memory_fraction(fraction)

    def reset_peak(self) -> None:
        import torch

        if self.recording:
            self.mark(Event(Action.RESET_PEAK))
            torch.cuda.reset_peak_memory_stats()

    def refused(self, error: BaseException) -> None:
        self.refusals.append(str(error))

    def finish(self, path: Path, workload: str, note: str) -> Trace:
        import torch

        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        entries = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
        header = {
            "date": datetime.date.today().isoformat(),
            "card": torch.cuda.get_device_name(),
            "total": self.total,
            "free_at_start": self.free,
            "torch": torch.__version__,
            "packages": {name: _version(name) for name in ("transformers", "peft", "bitsandbytes")},
            "settings": os.environ.get(SETTINGS, ""),
            "workload": workload,
            "note": note,
            "command": f"python benchmarks/record_traces.py --only {workload}",
            "refusals": self.refusals,
            "stats": dict(stats),
        }
        trace = Trace(header, from_snapshot(entries, self.marks))
        write_trace(path, trace)
        return trace


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
