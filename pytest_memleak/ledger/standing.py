"""What an object is worth in the name of a holder, and which running functions hold what."""

from __future__ import annotations

import gc
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_memleak.ledger.looking import frame_locals, generator_part, is_a, module_of
from pytest_memleak.upstream.where import as_typed_here

PLAIN, FRAME, SUSPENDED, INTERNAL = range(4)
TOOLS = ("pytest_memleak", "_pytest", "pluggy", "pytest", "xdist", "execnet", "__channelexec__")  # xdist's workers


@dataclass(frozen=True)
class Root:
    """How a path begins that starts at an object known by name: ``local``, ``h``, ``of running frame …``."""

    lead: str
    expression: str = ""
    tail: str = ""


def telling_of(thing: object) -> int:
    """How much an object says about itself though nothing named holds it."""
    if is_a(thing, BaseException):
        return 4
    if type(thing) is types.FrameType:
        return 3
    if generator_part(thing, "frame") is not None:
        return 2
    return int(type(thing) is types.FunctionType)


def rank_of(thing: object) -> int:
    """What a path through this object is worth: plain data first, what belongs to the test's tools last."""
    if type(thing) is types.FrameType:
        return INTERNAL if module_of_frame(thing) in TOOLS else FRAME
    frame = generator_part(thing, "frame")
    if frame is not None:
        return INTERNAL if module_of_frame(frame) in TOOLS else SUSPENDED
    if type(thing) is types.CellType:
        return SUSPENDED
    return INTERNAL if module_of(type(thing)).partition(".")[0] in TOOLS else PLAIN


def rank_of_module(name: str) -> int:
    return INTERNAL if name.partition(".")[0] in (*TOOLS, "torch", "gc") else PLAIN


def module_of_frame(frame: types.FrameType) -> str:
    """The first part of the module's name that the frame's code belongs to."""
    name = frame.f_globals.get("__name__")
    return name.partition(".")[0] if type(name) is str else ""


def running_locals() -> Iterator[tuple[int, Root]]:
    """The variables of functions that run now, by id: since Python 3.11 the collector does not show their frames."""
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    here = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        step: types.FrameType | None = frame
        while step is not None:
            if step.f_code.co_name != "<module>" and module_of_frame(step) not in (*TOOLS, "threading"):
                where = "" if ident == here else f", thread {threads.get(ident, ident)}"
                from_line = f"{step.f_code.co_name} ({as_typed_here(step.f_code.co_filename)}:{step.f_lineno}){where}"
                # A module's call says no more of it than the `forward` that it leads to.
                calling = step.f_globals.get("__name__") == "torch.nn.modules.module"
                for name, value in frame_locals(step).items():
                    if gc.is_tracked(value) and not (calling and name == "self"):
                        yield id(value), Root("local ", name, f" of running frame {from_line}")
            step = step.f_back
    del frame  # may be this generator's own, which would keep itself and what it has read
