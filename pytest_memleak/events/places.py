"""The place in a program that an allocation is put down to: the innermost line outside torch, and the user's above it.

While something is recorded only code and instruction are noted; they become words when somebody reads them.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterable, Mapping
from types import CodeType, FrameType
from typing import Any, NamedTuple

from pytest_memleak.events.callbacks import called_by_native_code
from pytest_memleak.upstream.where import PACKAGES, as_typed_here

BACKWARD = "a backward pass"

# Whose lines say nothing of why memory is wanted: they do what somebody else's line asked for.
_TOOLS = {"torch", "pytest_memleak", "pytest", "_pytest", "pluggy"}
_STANDARD = sysconfig.get_path("stdlib") + os.sep
# The one program that is predicted and not a user's: its functions are named after what they do.
_OWN_PROGRAM = "pytest_memleak.cli.program"

_OWN = os.path.dirname(os.path.dirname(__file__)) + os.sep

_HIDDEN, _LIBRARY, _USER = range(3)


class Place(NamedTuple):
    line: str
    """``transformers/models/llama/modeling_llama.py:178``: the innermost outside torch."""
    by: str
    """The user's line that led there, if that is another one."""


class _Code(NamedTuple):
    code: CodeType  # kept, so that its id stays its own
    kind: int
    file: str
    """As it is shown."""


class Places:
    """Numbers for places, from the frames of whoever asks."""

    BEFORE, UNKNOWN, SMALL = range(3)  # as in at_peak.h

    def __init__(self) -> None:
        self._codes: dict[int, _Code] = {}  # by id: a code object takes long to hash
        self._numbers: dict[object, int] = {}
        self._fixed = [Place("", ""), Place("a thread that runs no Python", ""), Place("", "")]

    @called_by_native_code
    def here(self, frame: FrameType | None = None) -> int:
        """The number of the place that called, at any distance. Kept fast: it is asked for every allocation."""
        frame = frame or sys._getframe(1)
        codes = self._codes
        code = instruction = 0
        while frame is not None:
            found = id(frame.f_code)
            known = codes.get(found)
            kind = (known or self._know(frame)).kind
            if kind:
                if kind == _USER:
                    return self._number((code, instruction, found, frame.f_lasti))
                if not code:
                    code, instruction = found, frame.f_lasti
            frame = frame.f_back
        # The threads of backward passes run no Python, and other threads begin in libraries.
        return self._number((code, instruction) if code else _thread())

    def __getitem__(self, number: int) -> Place:
        if number < len(self._fixed):
            return self._fixed[number]
        key = list(self._numbers)[number - len(self._fixed)]
        if isinstance(key, str):
            return Place(key, "")
        assert isinstance(key, tuple)
        line, by = self._line(*key[:2]), self._line(*key[2:])
        return Place(line or by, by if line else "")

    def _number(self, key: object) -> int:
        numbers = self._numbers
        return numbers.setdefault(key, len(numbers) + len(self._fixed))

    def _line(self, code: int = 0, instruction: int = 0) -> str:
        if not code:
            return ""
        found = self._codes[code]
        return f"{found.file}:{_line_of(found.code, instruction)}" if found.file.endswith(".py") else found.file

    def _know(self, frame: FrameType) -> _Code:
        code = frame.f_code
        kind, file = _kind(frame)
        known = self._codes[id(code)] = _Code(code, kind, file)
        return known


def _kind(frame: FrameType) -> tuple[int, str]:
    file = frame.f_code.co_filename
    module = frame.f_globals.get("__name__", "")
    if module == _OWN_PROGRAM:
        return _USER, frame.f_code.co_name.strip("_").replace("_", " ")
    if module.partition(".")[0] in _TOOLS:
        return _HIDDEN, ""
    return _kind_of_file(file)


def _kind_of_file(file: str) -> tuple[int, str]:
    """Whose it is, and how it is shown."""
    if file.startswith(("<", _OWN)) or (file.startswith(_STANDARD) and not PACKAGES.match(file)):
        return _HIDDEN, ""
    if PACKAGES.match(file):
        shown = as_typed_here(file)
        return (_HIDDEN, "") if shown.replace("\\", "/").partition("/")[0] in _TOOLS else (_LIBRARY, shown)
    return _USER, as_typed_here(file)


def place_of_frames(frames: Iterable[Mapping[str, Any]]) -> Place:
    """Of a stack as torch writes it down: file names and lines, the innermost first."""
    line = ""
    for frame in frames:
        kind, file = _kind_of_file(frame["filename"])
        if kind == _HIDDEN or not file.endswith(".py"):
            continue
        here = f"{file}:{frame['line']}"
        if kind == _USER:
            return Place(line or here, here if line else "")
        line = line or here
    return Place(line or BACKWARD, "")


def _line_of(code: CodeType, instruction: int) -> int:
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return line
    return code.co_firstlineno


def _thread() -> str:
    # Threads that were not made in Python get such a name when Python is called there for the first time.
    name = threading.current_thread().name
    return BACKWARD if name.startswith("Dummy-") else f"thread {name}"
