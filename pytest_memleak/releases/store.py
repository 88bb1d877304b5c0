"""What has been run already, so that a matrix that was interrupted goes on where it was.

A result is found again only where nothing has changed that decides it: what is installed, the tests, their arguments,
this plugin, the environment variables that it reads. What is not known, newer releases of packages that nobody pinned
above all, is bounded in time.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pytest_memleak.caches import cache_folder
from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.errors import Unavailable
from pytest_memleak.releases import package
from pytest_memleak.releases.cell import Cell, Outcome, Run
from pytest_memleak.report import files

_DAYS = 7
_READ = (".py", ".toml", ".ini", ".cfg", ".json")
_MOST_FILES = 20_000
_LARGE = 1024**2
"""Bytes of a file that is data rather than a test: its time and size have to do."""


@dataclass
class Store:
    folder: Path | None
    """None: nothing is kept."""
    fresh: bool = False
    """What is there is not used."""
    written: frozenset[Path] = frozenset()
    """What this call writes itself: no part of the tests, even if it lies among them."""
    problem: str = ""
    """Why something could not be kept."""

    @classmethod
    def in_cache(cls, *, fresh: bool = False, written: frozenset[Path] = frozenset()) -> Store:
        try:
            return cls(cache_folder("what has been run already") / "releases", fresh, written)
        except Unavailable as error:
            return cls(None, fresh, written, str(error))

    def get(self, run: Run) -> Outcome | None:
        path = self._path(run)
        if path is None or self.fresh:
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            when = datetime.datetime.fromisoformat(data["when"])
            if _now() - when > datetime.timedelta(days=_DAYS):
                return None
            shown = when.astimezone().strftime("%Y-%m-%d %H:%M")
            cells = tuple(Cell.from_store(cell, shown) for cell in data["cells"])
            return Outcome(run, cells, complete=True, collected=True)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # none, or one of another release of this plugin: it is run anew

    def put(self, outcome: Outcome) -> None:
        path = self._path(outcome.run)
        if path is None or not outcome.complete:
            return
        data = {"when": _now().isoformat(), "cells": [cell.to_store() for cell in outcome.cells]}
        try:
            files.write(path, json.dumps(data).encode(), "result")
        except Unavailable as error:
            self.problem = str(error)

    def forget(self, runs: list[Run]) -> None:
        """They have been told in full: the next call is a new one."""
        for run in runs:
            if path := self._path(run):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)

    def _path(self, run: Run) -> Path | None:
        if self.folder is None:
            return None
        try:
            return self.folder / f"{key(run, self.written)}.json"
        except (Unavailable, OSError) as error:
            self.problem = str(error)
            return None


def key(run: Run, written: frozenset[Path] = frozenset()) -> str:
    wanted = run.environment
    known = {
        "installed": [list(wanted.versions), list(wanted.requirements), wanted.python or platform.python_version()],
        "run": [list(run.arguments), run.timeout, run.attempt],
        "tests": _tests(run, written),
        "plugin": package.fingerprint(),
        "variables": sorted(
            (name, value) for name, value in os.environ.items() if name.startswith(("MEMLEAK_", "PYTEST_", "HF_"))
        ),
        "machine": [platform.platform(), accelerator_seen()],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


_digests: dict[Path, str] = {}


def _tests(run: Run, written: frozenset[Path]) -> str:
    """All that tests may read and import below the folder that they run in. Read once: it is what the call is about."""
    folder = run.case.folder if run.case else Path.cwd()
    if folder not in _digests:
        digest = hashlib.sha256(str(folder).encode())
        for count, path in enumerate(path for path in _below(folder) if path not in written):
            if count == _MOST_FILES:
                raise Unavailable(f"more than {count:,} files lie below {folder}, too many to tell whether one changes")
            status = path.stat()
            large = status.st_size > _LARGE
            data = f"{status.st_mtime_ns} {status.st_size}".encode() if large else path.read_bytes()
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + hashlib.sha256(data).digest())
        _digests[folder] = digest.hexdigest()
    return _digests[folder]


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        # Environments and what tools leave behind are no part of the tests.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not Path(place, name, "pyvenv.cfg").exists()
        )
        yield from (Path(place, name) for name in sorted(names) if name.endswith(_READ) and Path(place, name).is_file())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
