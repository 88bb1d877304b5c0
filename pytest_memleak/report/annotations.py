"""Broken promises as GitHub's workflow commands: each is shown at its line in the changes of a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.records.stored import StoredRun
from pytest_memleak.report.telling import most_telling

_PLACE = re.compile(r"(?P<file>[^:]+):(?P<line>[0-9]+)(?![^ ])")
_LINES = 8


def commands(stored: StoredRun, *, run_in: Path, repository: Path) -> list[str]:
    """`run_in`: where pytest was started, in or below `repository`, which files are named from."""
    return [
        _command(record, result, run_in.resolve(), repository.resolve())
        for record in stored.tests
        for result in most_telling(record)
        if result.verdict in ("fail", "inconclusive")
    ]


def no_commands(why: str) -> str:
    return f"::error title=memleak has no results::{_data(why)}"


def _command(record: TestRecord, result: CheckResult, run_in: Path, repository: Path) -> str:
    first, *details = [result.message, *result.details, *result.explanation][: _LINES + 1]
    advice = [f"what to do: {result.advice}"] if result.advice else []
    level = "error" if result.enforced else "warning"
    title = f"{result.check} of {record.nodeid}"
    where = ",".join([*_where(record, result, run_in, repository), f"title={_property(title)}"])
    return f"::{level} {where}::{_data(chr(10).join([first, *details, *advice]))}"


def _where(record: TestRecord, result: CheckResult, run_in: Path, repository: Path) -> list[str]:
    """Nothing, where not even the test is in the repository: then it stands at the run."""
    for file, line in _places(record, result):
        if found := _in_repository(file, run_in, repository):
            return [f"file={_property(found)}", f"line={line}"]
    return []


def _places(record: TestRecord, result: CheckResult) -> Iterator[tuple[str, int]]:
    """The promise's own line; where none was written, the line that took the most; else the test."""
    sources = [result.limit.source] if result.limit else []
    for text in [*sources, *(place for one in result.at_peak[:1] for place in (one.line, one.by))]:
        if found := _PLACE.match(text):
            yield found["file"], int(found["line"])
    yield record.file, record.line


def _in_repository(file: str, run_in: Path, repository: Path) -> str:
    """Its path from there; empty if it is elsewhere. pytest names files from its root, which may lie further up."""
    for folder in (run_in, *run_in.parents):
        path = (folder / file).resolve()
        if not path.is_relative_to(repository):
            return ""
        if path.is_file():
            return path.relative_to(repository).as_posix()
    return ""


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
