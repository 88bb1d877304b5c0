"""What a process was doing, from what `faulthandler` writes of its threads when it is stopped."""

from __future__ import annotations

import os
import re
import sysconfig

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$')
_THREAD = re.compile(r"^(Current thread|Thread) 0x")
_COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")
_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"))


def doing(written: str) -> str:
    """``in all_reduce, called at tests/test_x.py:12``; empty if nothing was written."""
    frames = _main_thread(written)
    if not frames:
        return ""
    innermost = _shown(*frames[0][:2])
    collective = next((name for file, _, name in reversed(frames) if file.endswith(_COLLECTIVES)), "")
    if collective in ("wrapper", "inner"):  # what logs all of them
        inner = [name for file, _, name in frames if file.endswith(_COLLECTIVES) and name not in ("wrapper", "inner")]
        collective = inner[-1] if inner else collective
    theirs = next((_shown(file, line) for file, line, _ in frames if _is_the_users(file)), innermost)
    return f"in {collective}, called at {theirs}" if collective else f"at {theirs}"


def collective(doing: str) -> str:
    """Of what `doing` says, the collective and where it was called."""
    return doing.removeprefix("in ") if doing.startswith("in ") else ""


def _main_thread(written: str) -> list[tuple[str, str, str]]:
    """Its frames, the innermost first."""
    threads: list[list[tuple[str, str, str]]] = []
    for line in written.splitlines():
        if _THREAD.match(line):
            threads.append([])
        elif threads and (frame := _FRAME.match(line)):
            threads[-1].append((frame["file"], frame["line"], frame["name"]))
    return threads[-1] if threads else []  # the youngest thread comes first


def _is_the_users(file: str) -> bool:
    own = os.path.dirname(os.path.dirname(__file__))
    return not file.startswith((*_INSTALLED, own, "<"))


def _shown(file: str, line: str) -> str:
    relative = os.path.relpath(file) if os.path.isabs(file) else file
    return f"{file if relative.startswith('..') else relative}:{line}"
