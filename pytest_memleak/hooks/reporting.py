"""The hooks that gather every test's record where reports are made: in xdist's controller, else the only process."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Any

import pytest

from pytest_memleak.errors import MemleakError
from pytest_memleak.hooks.measuring import RECORD
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import TestRecord
from pytest_memleak.records.run import RunInfo, versions
from pytest_memleak.report import json_file, terminal
from pytest_memleak.settings import Settings

_VERSIONS = "memleak_versions"


class Reporting:
    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._collected = Collected()
        self._started = _now()
        self._versions: dict[str, str] = {}
        self._json_failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (record := getattr(report, RECORD, None)) is not None:
            self._collected.add(TestRecord.from_json(record))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist is gone. One that was killed has no last words, but its finished tests are here."""
        output = getattr(node, "workeroutput", None)
        if output is None:
            self._collected.worker_fell_silent(str(node.gateway.id))
        else:
            self._versions |= output.get(_VERSIONS, {})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._settings.json is None:
            return
        run = RunInfo(
            started=self._started,
            finished=_now(),
            args=tuple(map(str, self._config.invocation_params.args)),
            mode=self._settings.mode,
            backend=self._settings.backend,
            exit_status=int(exitstatus),
            cap=self._settings.cap,
            versions=self._versions | versions(),
        )
        try:
            json_file.write(self._settings.json, json_file.document(self._collected, run))
        except MemleakError as error:
            # The tests have run: their results stand, and the exit status says that something is missing.
            self._json_failed = f"--memleak-json: {error}"
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verbosity = self._config.get_verbosity()
        lines = terminal.summary_lines(
            self._collected,
            mode=self._settings.mode,
            verbosity=verbosity,
            width=terminalreporter._tw.fullwidth,
        )
        if lines and verbosity >= 0:
            terminalreporter.write_sep("=", terminal.TITLE)
        terminal.write(lines, terminalreporter.write_line)
        if self._json_failed:
            terminalreporter.write_line(self._json_failed, red=True)


def tell_versions(config: pytest.Config) -> None:
    """In a worker of pytest-xdist: what the controller, which never imports torch, cannot know."""
    if "torch" in sys.modules:
        config.workeroutput[_VERSIONS] = versions()  # type: ignore[attr-defined]  # xdist's own attribute


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
