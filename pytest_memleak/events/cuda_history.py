"""What CUDA tensors take at their peak, by the place that allocated them: from the history that the allocator keeps.

The history costs 1.4 µs a block: a tenth to a fifth of a loop of small kernels, and of a load nothing that could be
measured. So it is kept where everything is to be recorded, and not else. Who holds what is looked up when an allocation
is refused, and by a thread that reads the level every few milliseconds. This file touches torch's private API; checked
on torch 2.11.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from pytest_memleak.events.places import Place, place_of_frames
from pytest_memleak.events.recording import NEVER, Alarm, Held, Reached, Recorded
from pytest_memleak.events.storages import address_of

MOST_EVENTS = 200_000
"""A fifth of a second to read, and some 100 MB; what is older is left out."""
_FAR, _NEAR = 0.02, 0.004
"""Seconds between two looks at the level: below half of what would ring, and above."""

Snapshot = Mapping[str, Any]
Entry = Mapping[str, Any]
Pauses = Sequence[tuple[int, int]]
"""From when to when, in microseconds."""


class CudaRecording:
    def __init__(self, index: int) -> None:
        self.device = f"cuda:{index}"
        self._index = index
        self._smallest = 0
        self._recording = False
        self._pauses: list[tuple[int, int]] = []
        self._paused_at: int | None = None
        self._places: Mapping[int, Place] = {}

    def begin(self, smallest: int) -> None:
        self._smallest = smallest
        if not smallest:  # it cannot be had for large blocks alone
            torch.cuda.init()
            _history.begin()
            self._recording = True

    def pause(self) -> None:
        if self._paused_at is None:
            self._paused_at = _now()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._pauses.append((self._paused_at, _now()))
            self._paused_at = None
            _history.goes_on()

    def end(self) -> None:
        if self._recording:
            self._recording = False
            _history.end()

    def read(self) -> Recorded:
        if not self._recording:
            return Recorded(0, ())
        pauses = [*self._pauses, *([(self._paused_at, sys.maxsize)] if self._paused_at is not None else [])]
        if self._paused_at is None:
            _history.goes_on()
        snapshot = _history.snapshot()
        alive = {
            block["address"]: block["requested_size"]
            for segment in snapshot["segments"]
            if segment["device"] == self._index
            for block in segment["blocks"]
            if block["state"] == "active_allocated"
        }
        entries = snapshot["device_traces"][self._index]
        self._places = still_there(entries)
        return at_peak(entries, alive, pauses)

    def watch(self, reached: Reached | None, level: int = NEVER) -> None:
        if reached is None:
            _sampler.alarms.pop(self._index, None)
        else:
            _sampler.add(self._index, Alarm(reached, level))

    def place_of(self, tensor: torch.Tensor) -> Place | None:
        """Known when it has been read: a snapshot for every look would take longer than that."""
        if not self._places:
            return None
        with torch._C.DisableTorchFunctionSubclass():
            try:
                storage = torch.Tensor.untyped_storage(tensor)
            except (RuntimeError, NotImplementedError):
                return None  # sparse tensors and wrappers have none
        return self._places.get(address_of(storage))


def still_there(entries: Sequence[Entry]) -> dict[int, Place]:
    """Of the blocks that are alive at the end of a trace: where they come from."""
    last: dict[int, Entry] = {}
    for change, entry in _changes(entries):
        if change > 0:
            last[entry["addr"]] = entry
        else:
            last.pop(entry["addr"], None)
    return {address: place_of_frames(entry.get("frames", ())) for address, entry in last.items()}


def snapshot() -> Snapshot | None:
    """torch's own of all devices, where a history is kept; the one that was read already, unless the test went on."""
    return _history.snapshot() if _history.kept else None


def at_peak(entries: Sequence[Entry], alive: Mapping[int, int], pauses: Pauses = ()) -> Recorded:
    """`entries`: one device's trace. `alive`: the blocks at its end, by address."""
    before = _at_the_beginning(entries, alive)
    highest = level = sum(before.values())
    index = -1  # the last entry that is part of the way up
    for place, (change, entry) in enumerate(_changes(entries)):
        level += change
        if level > highest and not any(start <= entry.get("time_us", 0) < end for start, end in pauses):
            highest, index = level, place
    blocks: dict[int, Entry | None] = dict.fromkeys(before)
    for place, (change, entry) in enumerate(_changes(entries)):
        if place > index:
            break
        if change > 0:
            blocks[entry["addr"]] = entry
        else:
            blocks.pop(entry["addr"], None)
    amounts: dict[Place, list[int]] = {}
    for found in blocks.values():
        if found is not None:
            amount = amounts.setdefault(place_of_frames(found.get("frames", ())), [0, 0])
            amount[0] += found["size"]
            amount[1] += 1
    return Recorded(highest, tuple(Held(where, *amount) for where, amount in amounts.items()))


def _changes(entries: Sequence[Entry]) -> Iterator[tuple[int, Entry]]:
    for entry in entries:
        if entry["action"] == "alloc":
            yield entry["size"], entry
        elif entry["action"] == "free_requested":
            yield -entry["size"], entry


def _at_the_beginning(entries: Sequence[Entry], alive: Mapping[int, int]) -> dict[int, int]:
    """What was there before the trace, which says nothing of it but that it was released."""
    found = dict(alive)
    for change, entry in reversed(list(_changes(entries))):
        if change > 0:
            found.pop(entry["addr"], None)
        else:
            found[entry["addr"]] = -change
    return found


def _now() -> int:
    return time.time_ns() // 1000


class _History:
    """torch keeps one for all devices."""

    def __init__(self) -> None:
        self._users = 0
        self._taken: Snapshot | None = None
        """It takes long and is large: one for all who ask, and not kept for longer than they may."""

    @property
    def kept(self) -> bool:
        return self._users > 0

    def snapshot(self) -> Snapshot:
        if self._taken is None:
            self._taken = torch.cuda.memory._snapshot()
        return self._taken

    def goes_on(self) -> None:
        self._taken = None

    def begin(self) -> None:
        self.goes_on()
        self._users += 1
        if self._users == 1:
            torch.cuda.memory._record_memory_history(
                enabled="all", context="alloc", stacks="python", max_entries=MOST_EVENTS
            )

    def end(self) -> None:
        self.goes_on()
        self._users -= 1
        if not self._users:
            torch.cuda.memory._record_memory_history(enabled=None)


class _Sampler:
    """Rings alarms: at a level that it finds, and at once for refusals."""

    def __init__(self) -> None:
        self.alarms: dict[int, Alarm] = {}
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._attached = False
        self._interval = _FAR

    def add(self, index: int, alarm: Alarm) -> None:
        self.alarms[index] = alarm
        self._attach()
        self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="memleak-sampler", daemon=True)
            self._thread.start()

    def _attach(self) -> None:
        """Before the program uses CUDA there is no allocator to be attached to."""
        if not self._attached and torch.cuda.is_initialized():
            self._attached = True
            attach: Any = torch._C  # not typed
            attach._cuda_attach_out_of_memory_observer(self._refused)

    def _refused(self, device: int, asked: int, total: int, free: int) -> None:
        if alarm := self.alarms.get(device):
            alarm.ring(_level(device), asked, refused=True)

    def _run(self) -> None:
        while True:
            if not self.alarms:
                self._wanted.clear()
                if not self.alarms:  # nobody came meanwhile
                    self._wanted.wait()
            time.sleep(self._interval)
            self._interval = _FAR
            self._attach()
            if self._attached:
                for index, alarm in list(self.alarms.items()):
                    self._look(index, alarm)

    def _look(self, index: int, alarm: Alarm) -> None:
        level = _level(index)
        if level < alarm.level:
            if 2 * level > alarm.level:
                self._interval = _NEAR
            return
        # The program is not to go on while who holds what is looked up.
        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)
        try:
            alarm.ring(level, 0, refused=False)
        finally:
            sys.setswitchinterval(interval)


def _level(index: int) -> int:
    return int(torch._C._cuda_memoryStats(index)["allocated_bytes"]["all"]["current"])


_history = _History()
_sampler = _Sampler()
