"""What a real caching allocator did, event by event, as a small file that can be kept and replayed.

A gzipped text file: one line of JSON (where it was recorded, and the run's own figures), then one event a line.
Addresses are hexadecimal, in units of 512 bytes above the trace's lowest one; sizes are decimal bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

FORMAT = "memleak-allocator-trace-1"
SUFFIX = ".trace.gz"
_UNIT = 512


class Action(str, Enum):
    """What happened; the value is the first character of its line."""

    ALLOC = "+"
    FREE = "-"
    FREE_REQUESTED = "~"  # its completion, when another stream still uses the block, comes later
    FREE_COMPLETED = "="
    SEGMENT_ALLOC = "S"
    SEGMENT_FREE = "s"
    SEGMENT_MAP = "M"
    SEGMENT_UNMAP = "m"
    OOM = "!"  # the size is what was asked, the address what the card had free
    EMPTY_CACHE = "e"
    RESET_PEAK = "p"
    CAP = "c"  # the size is the cap


@dataclass(frozen=True)
class Event:
    action: Action
    size: int = 0
    address: int = 0
    stream: int = 0


@dataclass(frozen=True)
class Trace:
    """A recorded run: `header` says where and how, and holds the run's `memory_stats` under "stats"."""

    header: Mapping[str, Any]
    events: Sequence[Event]


_ACTIONS = {
    "alloc": Action.ALLOC,
    "free_requested": Action.FREE_REQUESTED,
    "free_completed": Action.FREE_COMPLETED,
    "segment_alloc": Action.SEGMENT_ALLOC,
    "segment_free": Action.SEGMENT_FREE,
    "segment_map": Action.SEGMENT_MAP,
    "segment_unmap": Action.SEGMENT_UNMAP,
    "oom": Action.OOM,
}


def from_snapshot(entries: Iterable[Mapping[str, Any]], marks: Sequence[Event]) -> list[Event]:
    """The events of one device's trace in `torch.cuda.memory._snapshot()["device_traces"]`.

    The trace does not tell a cache that the program emptied from one that the allocator emptied in need. So whoever
    records takes a snapshot just before each such call, which leaves a "snapshot" entry; the k-th is `marks[k]`.
    """
    entries = list(entries)
    # Numbered as the allocator sorts them, the default stream first.
    streams = {stream: index for index, stream in enumerate(sorted({0, *(entry["stream"] for entry in entries)}))}
    events: list[Event] = []
    seen = 0
    for entry in entries:
        name = entry["action"]
        if name == "snapshot":
            if seen < len(marks):
                events.append(marks[seen])
            seen += 1
            continue
        action = _ACTIONS.get(name)
        if action is None:
            raise ValueError(f"an allocator trace holds the action {name!r}, which is not known here")
        address = entry["device_free"] if action is Action.OOM else entry["addr"]
        event = Event(action, entry["size"], address, streams[entry["stream"]])
        requested = events[-1] if events else None
        if (
            action is Action.FREE_COMPLETED
            and requested is not None
            and requested.action is Action.FREE_REQUESTED
            and requested.address == address
        ):
            events[-1] = Event(Action.FREE, 0, address, event.stream)
        else:
            events.append(event)
    if seen < len(marks):
        raise ValueError(f"{len(marks)} marks were set, and the trace holds {seen} snapshots: it is not whole")
    return events


_PLACED = frozenset(set(Action) - {Action.OOM, Action.EMPTY_CACHE, Action.RESET_PEAK, Action.CAP})


def write_trace(path: Path, trace: Trace) -> None:
    base = min((event.address for event in trace.events if event.action in _PLACED), default=0)
    header = {"format": FORMAT, "base": base, **trace.header}
    lines = [json.dumps(header, sort_keys=True)]
    for event in trace.events:
        address, off = divmod(event.address - base, _UNIT) if event.action in _PLACED else (event.address, 0)
        if off:
            raise ValueError(f"the address {event.address:#x} is no multiple of {_UNIT} above {base:#x}")
        stream = f" {event.stream}" if event.stream else ""
        lines.append(f"{event.action.value}{event.size or ''} {address:x}{stream}")
    # No time stamp and no name inside: the same run gives the same bytes.
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 9, mtime=0))


def read_trace(path: Path) -> Trace:
    first, *rest = gzip.decompress(path.read_bytes()).decode().splitlines()
    header = json.loads(first)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: the format is {header.get('format')!r}, and only {FORMAT!r} can be read here")
    return Trace(header, [_event(line, header["base"]) for line in rest])


def _event(line: str, base: int) -> Event:
    action = Action(line[0])
    size, address, *stream = line[1:].split(" ")
    place = int(address, 16)
    return Event(
        action,
        int(size or 0),
        place * _UNIT + base if action in _PLACED else place,
        int(stream[0]) if stream else 0,
    )
