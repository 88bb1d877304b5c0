"""What was alive when the card was fullest, by the lines of code that allocated it."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import NamedTuple

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.allocator.trace import Action
from pytest_memleak.upstream.where import as_typed_here
from pytest_memleak.wording import plural

Levels = dict[str, int]

# Whose lines say nothing of why memory is wanted: they do what somebody else's line asked for.
_TOOLS = {"torch", "pytest_memleak", "pytest", "_pytest", "pluggy"}
_STANDARD = sysconfig.get_path("stdlib") + os.sep
_PACKAGES = re.compile(r".*[/\\](?:site|dist)-packages[/\\]")
# The one program that is predicted and not a user's: its functions are named after what they do.
_OWN_PROGRAM = "pytest_memleak.cli.program"
BACKWARD = "a backward pass"


_LINES, _INSIDE = 5, 3
"""How many of the user's lines are shown, and of each how many lines of libraries that it led to."""


@dataclass(frozen=True, order=True)
class AtPeak:
    """Blocks that were alive at the peak and that one line allocated."""

    bytes: int
    blocks: int
    line: str
    """``transformers/models/llama/modeling_llama.py:178``: the innermost outside torch."""
    by: str
    """The user's line that led there, if that is another one."""


def lines_of(found: Sequence[AtPeak]) -> list[str]:
    """To be read: the user's lines with the most bytes, and below each what it led to."""
    groups: dict[str, list[AtPeak]] = {}
    for one in sorted(found, reverse=True):
        groups.setdefault(one.by or one.line, []).append(one)
    ordered = sorted(groups.items(), key=lambda group: _total(group[1]), reverse=True)
    lines = []
    for line, group in ordered[:_LINES]:
        lines.append(f"{_size(group)}  {line}")
        if len(group) > 1 or group[0].by:
            lines += [f"    {_size([one])}  {one.line if one.by else 'itself'}" for one in group[:_INSIDE]]
            lines += _rest(group[_INSIDE:], "    ")
    return lines + _rest([one for _, group in ordered[_LINES:] for one in group], "")


def _total(group: Sequence[AtPeak]) -> int:
    return sum(one.bytes for one in group)


def _size(group: Sequence[AtPeak]) -> str:
    return f"{format_size(_total(group)):>10} in {plural(sum(one.blocks for one in group), 'block')}"


def _rest(group: Sequence[AtPeak], indent: str) -> list[str]:
    return [f"{indent}{_size(group)}  {plural(len(group), 'other line')}"] if group else []


class PeakContents:
    """Observes an allocator: keeps the highest levels, whatever the program resets, and what was alive then."""

    def __init__(self, allocator: Allocator) -> None:
        self._allocator = allocator
        self.peaks: Levels = dict.fromkeys(("requested", "allocated", "reserved"), 0)
        self.refused = 0
        self._live: dict[int, tuple[int, int]] = {}
        """By address: which line's block it is, and its bytes."""
        self._places: dict[tuple[str, str], int] = {}
        self._held: list[list[int]] = []
        """Bytes and blocks of each line, now."""
        self._at_peak: list[tuple[int, int]] = []
        self._rising = False
        self._names: dict[CodeType, _Name] = {}

    def see(self, action: Action, address: int, size: int, stream: int) -> None:
        if action is Action.ALLOC:
            self._allocated(address)
        elif action is Action.FREE:
            self._freed(address)
        elif action is Action.OOM:
            self.refused += 1

    def lines(self) -> tuple[AtPeak, ...]:
        """The largest first."""
        self._settle()
        found = [
            AtPeak(held, blocks, *place)
            for (held, blocks), place in zip(self._at_peak, self._places, strict=False)
            if blocks
        ]
        return tuple(sorted(found, reverse=True))

    def _allocated(self, address: int) -> None:
        allocator, peaks = self._allocator, self.peaks
        peaks["requested"] = max(peaks["requested"], allocator.requested)
        peaks["reserved"] = max(peaks["reserved"], allocator.reserved)
        index = self._places.setdefault(self._place(), len(self._places))
        if index == len(self._held):
            self._held.append([0, 0])
        size = allocator.size_of(address)
        self._live[address] = index, size
        held = self._held[index]
        held[0] += size
        held[1] += 1
        if allocator.allocated > peaks["allocated"]:
            peaks["allocated"] = allocator.allocated
            self._rising = True

    def _freed(self, address: int) -> None:
        self._settle()
        found = self._live.pop(address, None)
        if found is not None:
            index, size = found
            held = self._held[index]
            held[0] -= size
            held[1] -= 1

    def _settle(self) -> None:
        """Notes what is alive at a peak: not at every step on the way up, but before the first step down."""
        if self._rising:
            self._at_peak = [(held, blocks) for held, blocks in self._held]
            self._rising = False

    def _place(self) -> tuple[str, str]:
        frame: FrameType | None = sys._getframe(3)
        line = ""
        while frame is not None:
            name = self._names.get(frame.f_code)
            if name is None:
                name = self._names[frame.f_code] = _name(frame)
            if name.file:
                here = f"{name.file}:{frame.f_lineno}" if name.file.endswith(".py") else name.file
                if not name.library:
                    return line or here, here if line else ""
                line = line or here
            frame = frame.f_back
        # The threads of backward passes run no Python, and other threads begin in libraries.
        return line or _thread(), ""


class _Name(NamedTuple):
    file: str
    """As it is shown; empty if its lines are not to be."""
    library: bool


def _name(frame: FrameType) -> _Name:
    file = frame.f_code.co_filename
    module = frame.f_globals.get("__name__", "")
    if module == _OWN_PROGRAM:
        return _Name(frame.f_code.co_name.strip("_").replace("_", " "), library=False)
    if module.partition(".")[0] in _TOOLS or file.startswith("<"):
        return _Name("", library=True)
    if found := _PACKAGES.match(file):
        return _Name(file[found.end() :], library=True)
    return _Name("", library=True) if file.startswith(_STANDARD) else _Name(as_typed_here(file), library=False)


def _thread() -> str:
    # Threads that were not made in Python get such a name when Python is called there for the first time.
    name = threading.current_thread().name
    return BACKWARD if name.startswith("Dummy-") else f"thread {name}"
