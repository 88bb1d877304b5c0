"""The document of ``--memleak-json``, read: what those know of a run who come after it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from pytest_memleak.errors import BadInput
from pytest_memleak.records.collected import Totals
from pytest_memleak.records.decoding import decoded
from pytest_memleak.records.record import TestRecord
from pytest_memleak.records.run import RunInfo

SCHEMA = "pytest-memleak/1"
_HEAVY = ("timelines", "baseline")
"""Of each test; nobody who reads a stored run asks for them."""


@dataclass(frozen=True)
class Change:
    """On one device of a test: what the baseline has, and what it came to."""

    place: str
    recorded: int
    measured: int


@dataclass(frozen=True)
class Changed:
    test: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Named:
    test: str


@dataclass(frozen=True)
class AgainstBaseline:
    """The run held against its baseline, as docs/json.md describes it."""

    path: str
    entries: int
    compared: int
    above: int
    written: bool
    missing: tuple[Named, ...]
    higher: tuple[Changed, ...]
    lower: tuple[Changed, ...]
    unused: tuple[Named, ...] | None


@dataclass(frozen=True)
class StoredRun:
    run: RunInfo
    totals: Totals
    silent_workers: tuple[str, ...]
    tests: tuple[TestRecord, ...]
    baseline: AgainstBaseline | None = None


def read(path: str | os.PathLike[str]) -> StoredRun:
    """A `BadInput` says what is wrong with the file, and what to do."""
    shown = os.fspath(path)
    try:
        with open(path, "rb") as file:
            text = file.read().decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadInput(f"{shown}: cannot be read ({reason}): give the file that pytest --memleak-json wrote") from error
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{shown}: is no JSON ({error}): give the file that pytest --memleak-json wrote") from error
    try:
        return _run(data)
    except BadInput as error:
        raise error.located(shown) from error


def _run(data: Any) -> StoredRun:
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        ours = isinstance(schema, str) and schema.startswith(f"{SCHEMA.partition('/')[0]}/")
        do = "use the release of pytest-memleak that wrote it" if ours else "give the file of --memleak-json"
        raise BadInput(f"its schema is {schema!r:.60}, and this release reads {SCHEMA!r}: {do}")
    tests = data.get("tests")
    if isinstance(tests, list):
        data = data | {"tests": [_light(test) for test in tests]}
    stored: StoredRun = decoded(StoredRun, data, "")
    return stored


def _light(test: Any) -> Any:
    return {name: value for name, value in test.items() if name not in _HEAVY} if isinstance(test, dict) else test


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number in JSON")
