"""What is said of ``--memleak-snapshots`` when the tests have run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from pytest_memleak.records.record import TestRecord
from pytest_memleak.wording import SNAPSHOT, plural


def summary(folder: str, records: Iterable[TestRecord], start: Path) -> str:
    """One line: how many there are and where, or why there is none."""
    records = list(records)
    saved = sum(any(note.startswith(SNAPSHOT) for note in record.notes) for record in records)
    if saved:
        return (
            f"{plural(saved, 'memory snapshot')} in {shown(folder, start)}: open them at https://pytorch.org/memory_viz"
        )
    on_cuda = any(
        record.card is not None and record.card.backend == "real" and record.card.devices[0].startswith("cuda")
        for record in records
    )
    if on_cuda:
        return "no memory snapshots: they are of what was recorded, and no test's memory was (--memleak-explain)"
    return "no memory snapshots: torch takes them of CUDA devices, and no measured test ran on one"


def shown(path: str, start: Path) -> str:
    """Short, where it lies below the folder that pytest was started in."""
    relative = os.path.relpath(path, start)
    return path if relative.startswith(os.pardir) else relative
