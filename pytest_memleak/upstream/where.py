"""The line of a user's program that caused something deep inside the libraries."""

from __future__ import annotations

import os
import re
import sys
import threading
from types import FrameType

Place = tuple[str, int]
"""File and line; the file is empty where no user's code was on the stack."""

_LIBRARIES = {"torch", "transformers", "accelerate", "peft", "bitsandbytes", "flash_attn", "triton", "pytest_memleak"}
# What compares and writes down on a program's behalf.
_LIBRARIES |= {"numpy", "_pytest", "unittest", "json", "statistics", "fractions"}
# What of the standard library calls on a library's behalf.
_LIBRARIES |= {"contextlib", "functools", "threading", "concurrent", "multiprocessing"}

PACKAGES = re.compile(r".*[/\\](?:site|dist)-packages[/\\]")


def caller(past: str = "") -> Place:
    """The first frame outside the libraries, and outside functions named `past` unless there are no others."""
    frame: FrameType | None = sys._getframe(1)
    nearest: Place | None = None
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            place = frame.f_code.co_filename, frame.f_lineno
            if frame.f_code.co_name != past:
                return place
            nearest = nearest or place
        frame = frame.f_back
    return nearest or ("", 0)


def shown(place: Place) -> str:
    """``tests/test_load.py:12``, relative where it lies below the working directory."""
    file, line = place
    if not file:
        return f"an unknown line of thread {threading.current_thread().name}"
    return f"{as_typed_here(file)}:{line}"


def as_typed_here(file: str) -> str:
    """Relative where the file lies below the working directory; a library's, wherever that is installed."""
    if found := PACKAGES.match(file):
        return file[found.end() :]
    try:
        relative = os.path.relpath(file)
    except (OSError, ValueError):
        return file  # the working directory is gone, or on another drive
    return file if relative.startswith(os.pardir) else relative
