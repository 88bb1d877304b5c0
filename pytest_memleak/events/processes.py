"""Other processes as /proc shows them: who descends from whom, what they run, whether they have torch."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

# The kernel's PF_FORKNOEXEC: forked, and has not begun to run a program of its own.
_FORKED_ONLY = 0x40
_TORCH = re.compile(rb"/libtorch(_cpu|_python)?\.so")
_COMMAND_LENGTH = 80
# A process that waits uses none at all, and one that is handed a tensor and computes the least with it 0.3 ms.
_WORK_NS = 200_000
# The coarser count moves by one when a boundary is passed, however little was done.
_WORK_TICKS = 2
_KERNEL_LISTS_CHILDREN = os.path.exists("/proc/thread-self/children")
_ATTEMPTS = 5


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: int
    """In ticks; tells it from another process that is given the same number later."""
    executed: bool
    """It runs a program of its own; otherwise it was only forked so far."""
    ticks: int
    """Processor time, coarsely."""


@dataclass(frozen=True)
class Work:
    """The processor time that a process has used."""

    nanoseconds: int | None
    """Of its threads that are alive; None where the kernel does not count."""
    ticks: int

    def is_more_than(self, earlier: Work) -> bool:
        if self.nanoseconds is None or earlier.nanoseconds is None:
            return self.ticks > earlier.ticks
        return self.nanoseconds - earlier.nanoseconds > _WORK_NS or self.ticks - earlier.ticks >= _WORK_TICKS


def process(pid: int) -> Process | None:
    """None if it is gone, or ended and only waits to be fetched."""
    fields = _fields_of(pid)
    if fields is None or fields[0] == "Z":
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Process(pid, int(fields[1]), int(fields[19]), not int(fields[6]) & _FORKED_ONLY, ticks)


def _fields_of(pid: int) -> list[str] | None:
    """What /proc tells about it, from its state on; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # The name, in parentheses, may hold anything; field 3 comes after the last of them.
            return stat.read().rpartition(")")[2].split()
    except OSError:
        return None


def work_of(one: Process) -> Work:
    total = 0
    try:
        for thread in os.listdir(f"/proc/{one.pid}/task"):
            with open(f"/proc/{one.pid}/task/{thread}/schedstat", encoding="ascii") as schedstat:
                total += int(schedstat.read().split()[0])
    except (OSError, ValueError, IndexError):
        return Work(None, one.ticks)  # gone, or a kernel without these counters
    return Work(total, one.ticks)


def has_children() -> bool:
    """Whether this process has any, those included that ended and were not fetched; asks the kernel once."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    except (AttributeError, OSError):
        pass  # not in this system
    return True


def children_of(pid: int) -> list[int]:
    """The direct children now, those included that ended and were not fetched."""
    if not _KERNEL_LISTS_CHILDREN:
        return _children_by_parent(pid)
    found: set[int] = set()
    for _ in range(_ATTEMPTS):
        whole = True
        for thread in _threads_of(pid):
            try:
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                    found.update(int(child) for child in children.read().split())
            except OSError:
                whole = False  # it ended just now, and its children went to a thread that was perhaps read before
        if whole:
            break
    return list(found)


def _threads_of(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []  # gone


def used_by_children() -> float:
    """The processor time, in seconds, of this process's children that ended and were fetched."""
    times = os.times()
    return times.children_user + times.children_system


def descendants_of(pid: int, without: Collection[int], with_also: Iterable[int] = ()) -> list[Process]:
    """All that descend from `pid` or from one of `with_also`, these included; `without` are left out with theirs."""
    found: dict[int, Process] = {}
    todo = [*children_of(pid), *with_also]
    while todo:
        candidate = todo.pop()
        if candidate in without or candidate in found:
            continue
        if (one := process(candidate)) is not None:
            found[candidate] = one
            todo.extend(children_of(candidate))
    return list(found.values())


def _children_by_parent(pid: int) -> list[int]:
    numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [number for number in numbers if (fields := _fields_of(number)) is not None and int(fields[1]) == pid]


def has_torch(pid: int) -> bool:
    """Whether libtorch is mapped; False of a process that is gone or belongs to somebody else."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            return _TORCH.search(maps.read()) is not None
    except OSError:
        return False


def command_of(pid: int) -> str:
    """Its command line on one line; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            words = cmdline.read().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return ""
    return " ".join(" ".join([os.path.basename(words[0]), *words[1:]]).split())


def shortened(command: str) -> str:
    return command if len(command) <= _COMMAND_LENGTH else command[: _COMMAND_LENGTH - 1] + "…"
