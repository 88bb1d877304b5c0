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
import platform
from dataclasses import dataclass
from pathlib import Path

from pytest_memleak.caches import cache_folder
from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.errors import Unavailable
from pytest_memleak.releases import deciding, package
from pytest_memleak.releases.cell import Cell, Outcome, Run
from pytest_memleak.report import files

_DAYS = 7


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

    def __post_init__(self) -> None:
        """Nobody asks again for what a changed test has left behind."""
        oldest = (_now() - datetime.timedelta(days=_DAYS)).timestamp()
        # What is in the way of that is told where something is to be kept.
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir() if self.folder else ():
                if path.lstat().st_mtime < oldest:
                    path.unlink()

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
        "tests": deciding.tests(run, written),
        "plugin": package.fingerprint(),
        "variables": deciding.variables(),
        "machine": [platform.platform(), accelerator_seen()],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)
