"""Which projects' tests are run, and how: downstream.toml, read into data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_memleak.errors import BadInput
from pytest_memleak.records.decoding import decoded

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).parent / "downstream.toml"


@dataclass(frozen=True)
class Project:
    name: str
    version: str
    sha256: str
    """Of its source distribution: these tests, and no others, were read before they are run."""
    tests: tuple[str, ...]
    """Paths below `folder`."""
    requires: tuple[str, ...] = ()
    """What its tests need besides itself, torch and pytest."""
    arguments: tuple[str, ...] = ()
    """For pytest."""
    left_out: Mapping[str, str] | None = None
    """Files and tests that are not run, and why."""
    conftests: tuple[str, ...] = ()
    """Those that were read and do nothing but what tests need; with another one, no test is run."""
    folder: str = "."
    """Where pytest is started, below the source distribution's root."""
    packages: tuple[str, ...] = ()
    """Folders that the source distribution lacks an __init__.py in, which the repository has."""
    folders: tuple[str, ...] = ()
    """Those that tests write to."""
    alone: str = ""
    """Why its tests do not run beside each other, if so: no workers are started, whatever is asked for."""

    @property
    def pinned(self) -> str:
        return f"{self.name}=={self.version}"

    def pytest_arguments(self) -> list[str]:
        left_out = [("--deselect=" if "::" in place else "--ignore=") + place for place in self.left_out or {}]
        return [*self.arguments, *left_out, *self.tests]


@dataclass(frozen=True)
class _Table:
    project: tuple[Project, ...]


def read(path: Path = TABLE) -> tuple[Project, ...]:
    try:
        data: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: is no TOML: {error}") from error
    try:
        table: _Table = decoded(_Table, data, "")
    except BadInput as error:
        raise error.located(str(path)) from error
    return table.project


def chosen(projects: Sequence[Project], names: Sequence[str]) -> tuple[Project, ...]:
    """In the order of the table; all of them if none is named."""
    known = [project.name for project in projects]
    if unknown := [name for name in names if name not in known]:
        raise BadInput(f"--projects: {', '.join(unknown)} is not in downstream.toml, which has {', '.join(known)}")
    return tuple(project for project in projects if not names or project.name in names)
