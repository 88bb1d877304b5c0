"""Cards that are a file: a driver that many processes ask at once, and memory that they take of it.

As on a card, what a dead process had is free, and who asks for more than there is is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers.driver import Device

GIB = 1024**3


class OutOfMemory(Exception):
    """There is not so much left."""


class FakeCards:
    def __init__(self, file: Path, names_processes: bool = True) -> None:
        """`names_processes`: whether the driver tells who has what, by numbers that mean something here."""
        self._file = file
        self._names_processes = names_processes

    @classmethod
    def make(cls, file: Path, *totals: int, name: str = "Fake H200") -> FakeCards:
        cards = [{"key": f"GPU-{number}f00", "name": name, "total": total} for number, total in enumerate(totals)]
        file.write_text(json.dumps({"cards": cards, "taken": {card["key"]: {} for card in cards}, "most": {}}))
        return cls(file)

    def devices(self) -> tuple[Device, ...]:
        with self._state() as state:
            return tuple(Device(**card) for card in state["cards"])

    def used(self, key: str) -> int:
        with self._state() as state:
            if key in state.get("lost", ()):
                raise Unavailable(f"card {key} is lost")
            return sum(_living(state["taken"][key]).values())

    def processes(self, key: str) -> Mapping[int, int] | None:
        if not self._names_processes:
            return {}  # as in a container
        with self._state() as state:
            return {int(pid): taken for pid, taken in _living(state["taken"][key]).items() if taken}

    def allocate(self, key: str, count: int, pid: int | None = None) -> None:
        """Of a process that is foreign: `pid` 1, which lives as long as the machine."""
        with self._state() as state:
            taken = state["taken"][key] = _living(state["taken"][key])
            total = next(card["total"] for card in state["cards"] if card["key"] == key)
            if sum(taken.values()) + count > total:
                raise OutOfMemory(f"{count:,} B wanted, {total - sum(taken.values()):,} B free of {total:,} B")
            name = str(os.getpid() if pid is None else pid)
            taken[name] = taken.get(name, 0) + count
            state["most"][key] = max(state["most"].get(key, 0), sum(one > GIB for one in taken.values()))

    def lose(self, key: str) -> None:
        """From now on nothing is told of it."""
        with self._state() as state:
            state["lost"] = [key]

    def change(self, key: str, **fields: Any) -> None:
        """As the driver finds it when it is started."""
        with self._state() as state:
            next(card for card in state["cards"] if card["key"] == key).update(fields)

    def held(self, key: str) -> int:
        with self._state() as state:
            return int(state["taken"][key].get(str(os.getpid()), 0))

    def most_at_once(self, key: str) -> int:
        """How many processes had more than a GiB of it at the same time."""
        with self._state() as state:
            return int(state["most"].get(key, 0))

    def forget_most(self) -> None:
        with self._state() as state:
            state["most"].clear()

    @contextlib.contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        with self._file.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            state = json.loads(text)
            yield state
            if (changed := json.dumps(state)) != text:
                file.seek(0)
                file.write(changed)
                file.truncate()


def _living(taken: Mapping[str, int]) -> dict[str, int]:
    return {pid: count for pid, count in taken.items() if pid == "1" or _lives(int(pid))}


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
