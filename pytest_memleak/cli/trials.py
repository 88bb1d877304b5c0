"""What `memleak matrix` and `memleak bisect` share: options, the making of a workshop, and what goes on, on stderr."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.errors import MemleakError
from pytest_memleak.releases.case import TIMEOUT
from pytest_memleak.releases.cell import Began, Cell, Done, Event, Versions, in_words
from pytest_memleak.releases.environment import Uv, find_uv
from pytest_memleak.releases.index import Release, releases
from pytest_memleak.releases.planning import Base, Known
from pytest_memleak.releases.processes import Processes
from pytest_memleak.releases.running import Workshop
from pytest_memleak.releases.sources import Sources, sources
from pytest_memleak.releases.store import Store
from pytest_memleak.releases.table import reason_in_words, verdict_in_words
from pytest_memleak.report import files
from pytest_memleak.wording import shortened

FINE, NOT_FINE, USAGE, INTERRUPTED = 0, 1, 2, 130


def add_options(command: Any) -> None:
    command.add_argument("--with", dest="further", action="append", default=[], metavar="REQ", help="install this too")
    command.add_argument("--python", default="", metavar="PYTHON", help="a version or a path (default: this one)")
    command.add_argument("--pre", action="store_true", help="take pre-releases, too")
    command.add_argument("--yanked", action="store_true", help="take releases that were withdrawn, too")
    command.add_argument("--jobs", type=_jobs, default=None, metavar="N", help="environments at a time")
    command.add_argument(
        "--timeout",
        type=_seconds,
        default=None,
        metavar="S",
        help=f"of one pytest (default: what its case says, else {TIMEOUT:.0f})",
    )
    command.add_argument("--fresh", action="store_true", help="do not go on where an interrupted call was")
    command.add_argument("--keep", action="store_true", help="keep the environments, and say where they are")
    command.add_argument("--json", type=Path, metavar="PATH", help="write the cells as data, too")


def base(chosen: argparse.Namespace) -> Base:
    return Base(tuple(chosen.further), chosen.python, chosen.timeout)


def jobs(chosen: argparse.Namespace) -> int:
    if chosen.jobs:
        return int(chosen.jobs)
    # Two that share one card take each other's memory.
    return 1 if accelerator_seen() else min(os.cpu_count() or 1, 4)


class Index:
    """Releases by package; asked of the index once each, and only where somebody has to know them."""

    def __init__(self, where: Sources, python: str) -> None:
        self._where = where
        # Only a version can be held against what releases say that they need.
        self._python = python if python[:1].isdigit() else ""
        self._found: dict[str, list[Release]] = {}

    def __call__(self, package: str) -> list[Release]:
        if package not in self._found:
            self._found[package] = releases(package, self._where, self._python)
        return self._found[package]


def prepare(chosen: argparse.Namespace) -> tuple[Uv, Known]:
    where = sources()
    for path in _written(chosen):
        files.check_writable(path, "file of results")
    return Uv(find_uv(), where, Processes()), Index(where, chosen.python)


def _written(chosen: argparse.Namespace) -> list[Path]:
    return [path.absolute() for path in (chosen.json, getattr(chosen, "markdown", None)) if path]


@contextlib.contextmanager
def workshop(chosen: argparse.Namespace, uv: Uv, runs: int | None) -> Iterator[Workshop]:
    live = Live(sys.stderr, runs)
    store = Store.in_cache(fresh=chosen.fresh, written=frozenset(_written(chosen)))
    with terminations(uv.processes), Workshop(uv, store, live, jobs(chosen), chosen.keep) as shop:
        with live:
            yield shop
    if chosen.keep:
        tell(f"kept: {shop.folder}")
    if shop.store.problem:
        tell(f"memleak: results are not kept for another call: {shop.store.problem}")


@contextlib.contextmanager
def terminations(processes: Processes) -> Iterator[None]:
    """A CI service that ends a job says SIGTERM, a terminal that closes SIGHUP: what is known is told as after Ctrl-C.

    Only the first signal interrupts: a second one would interrupt what tells and tidies up. Ctrl-C once more takes the
    grace from those that are being stopped; SIGTERM and SIGHUP do not, since some send both at once.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            processes.hurry()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    # What is ignored stays so: nohup, and jobs in the background of a script, ask for that.
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write(path: Path | None, data: bytes) -> bool:
    """Whether it is there; why not is told."""
    if path is None:
        return True
    try:
        files.write(path, data, "file of results")
    except MemleakError as error:
        tell(f"memleak: {error}")
        return False
    return True


class Live:
    """A line for each cell that is done; on a terminal, below them, what is running."""

    def __init__(self, stream: TextIO, runs: int | None) -> None:
        """`runs`: how many there will be, if that is known."""
        self._stream = stream
        self._of = f"/{runs}" if runs is not None else ""
        self._done = 0
        self._running: dict[Versions, tuple[str, float]] = {}
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._drawn = False
        self._ticking: threading.Thread | None = None

    def __enter__(self) -> Live:
        if self._stream.isatty():
            self._ticking = threading.Thread(target=self._tick, daemon=True, name="memleak-live")
            self._ticking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._ticking:
            self._ticking.join()
        self._erase()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Began):
                self._running[event.versions] = (event.what, time.monotonic())
            elif isinstance(event, Done):
                self._running.pop(event.versions, None)
                self._done += 1
                self._erase()
                for cell in event.cells:
                    tell(cell_line(cell, f"[{self._done}{self._of}]"), self._stream)
            self._draw()

    def _tick(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        if not self._ticking or self._over.is_set() or not self._running:
            return
        now = time.monotonic()
        start = f"memleak: [{self._done}{self._of}] "
        # Each has its share of the line; the seconds at its end are what is seen to move.
        room = (columns() - 1 - len(start)) // len(self._running) - len(" · ")
        parts = [f"{in_words(which)}: {what} {now - since:.0f} s" for which, (what, since) in self._running.items()]
        text = start + " · ".join(shortened(part, max(room, 12)) for part in parts)
        tell(f"\r\x1b[K{text[: columns() - 1]}", self._stream, end="")
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            tell("\r\x1b[K", self._stream, end="")
            self._drawn = False


def cell_line(cell: Cell, start: str) -> str:
    reason = reason_in_words(cell)
    where = f"{cell.case}: " if cell.case else ""
    stored = " [from an earlier call]" if cell.stored else ""
    said = f"{start} {where}{in_words(cell.versions)} {cell.test}: {verdict_in_words(cell)}"
    return f"{said}{f': {reason}' if reason else ''}{stored}"


def columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 160  # a log


def tell(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """On stderr. Whoever reads it may have gone (head, a closed terminal): the results are not lost for that."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=stream or sys.stderr, flush=True)


def complain(command: str, error: Exception) -> None:
    tell(f"memleak {command}: {error}")


def _jobs(text: str) -> int:
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if 0 < seconds < float("inf"):
        return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
