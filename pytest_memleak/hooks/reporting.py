"""The hooks that gather every test's record where reports are made: in xdist's controller, else the only process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest

from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.errors import BadInput, MemleakError, Unavailable
from pytest_memleak.hooks.baselines import BaselineRun
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import TestRecord
from pytest_memleak.records.run import RunInfo, versions
from pytest_memleak.report import json_file, terminal
from pytest_memleak.report.baseline import baseline_lines
from pytest_memleak.report.files import check_writable
from pytest_memleak.report.snapshots import summary
from pytest_memleak.settings import Settings
from pytest_memleak.wording import plural

_VERSIONS = "memleak_versions"


class Reporting:
    def __init__(self, config: pytest.Config, settings: Settings, baseline: BaselineRun | None = None) -> None:
        self._config = config
        self._baseline = baseline
        self._settings = settings
        self._collected = Collected()
        self._started = _now()
        self._versions: dict[str, str] = {}
        self._failed: list[str] = []
        """What could not be written, and why."""
        self._without_gpu = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (record := getattr(report, RECORD, None)) is not None:
            self._collected.add(TestRecord.from_json(record))
        self._without_gpu += _skipped_for_want_of_a_gpu(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._without_gpu += _skipped_for_want_of_a_gpu(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """A worker of pytest-xdist is gone. One that was killed has no last words, but its finished tests are here."""
        output = getattr(node, "workeroutput", None)
        if output is None:
            self._collected.worker_fell_silent(str(node.gateway.id))
        else:
            self._versions |= output.get(_VERSIONS, {})

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._settings.json is None and self._settings.html is None:
            return
        run = RunInfo(
            started=self._started,
            finished=_now(),
            args=tuple(map(str, self._config.invocation_params.args)),
            mode=self._settings.mode,
            backend=f"{self._settings.backend}:{self._settings.cards}".rstrip(":"),
            exit_status=int(session.exitstatus),  # which the baseline may have changed
            cap=self._settings.cap,
            versions=self._versions | versions(),
        )
        if (path := self._settings.json) is not None:
            told = self._baseline.told if self._baseline is not None else None
            self._write("--memleak-json", lambda: json_file.write(path, json_file.document(self._collected, run, told)))
        if (page := self._settings.html) is not None:
            from pytest_memleak.report import html

            folder = self._config.invocation_params.dir
            self._write("--memleak-html", lambda: html.write(page, self._collected, run, folder))
        if self._failed:
            # The tests have run: their results stand, and the exit status says that something is missing.
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def _write(self, flag: str, write: Callable[[], None]) -> None:
        try:
            write()
        except MemleakError as error:
            self._failed.append(f"{flag}: {error}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        verbosity = self._config.get_verbosity()
        lines = terminal.summary_lines(
            self._collected,
            mode=self._settings.mode,
            verbosity=verbosity,
            width=terminalreporter._tw.fullwidth,
        )
        lines += self._of_baseline(verbosity, terminalreporter._tw.fullwidth)
        lines += self._could_have_run(bool(lines))
        if (folder := self._settings.snapshots) is not None and verbosity >= 0:
            lines.append(terminal.Line(summary(folder, self._collected, self._config.invocation_params.dir)))
        if lines and verbosity >= 0:
            terminalreporter.write_sep("=", terminal.TITLE)
        terminal.write(lines, terminalreporter.write_line)
        for failed in [*self._failed, *([self._baseline.failed] if self._baseline and self._baseline.failed else [])]:
            terminalreporter.write_line(failed, red=True)

    def _of_baseline(self, verbosity: int, width: int) -> list[terminal.Line]:
        if self._baseline is None or self._baseline.told is None:
            return []
        return baseline_lines(self._baseline.told, verbosity=verbosity, width=width)

    def _could_have_run(self, speaking: bool) -> list[terminal.Line]:
        """Tests that a simulated card might have run; silent where nobody asked this plugin for anything."""
        settings = self._settings
        asked = speaking or settings.cap is not None or settings.backend_given is not None
        if not self._without_gpu or not asked or settings.backend != "auto" or accelerator_seen():
            return []
        skipped = plural(self._without_gpu, "skip", "skips")
        text = f"{skipped} for want of a GPU: --gpu-backend=simulated lets such tests see a card from their import on"
        return [terminal.Line(text, {"yellow": True})]


def check_paths(settings: Settings) -> None:
    """What cannot be written, or lacks what it needs, is said before any test runs."""
    from pytest_memleak.report.html.plotly import find_plotly

    wanted = {
        "json": (settings.json, "JSON file"),
        "html": (settings.html, "page"),
        "snapshots": (settings.snapshots and os.path.join(settings.snapshots, "a.pickle"), "snapshot"),
    }
    for name, (path, what) in wanted.items():
        try:
            if path is not None:
                check_writable(path, what)
                if name == "html":
                    find_plotly()
        except (BadInput, Unavailable) as error:
            raise pytest.UsageError(f"--memleak-{name}: {error}") from None


_GPU = re.compile(r"\b(gpus?|cuda|nvidia|accelerators?)\b", re.IGNORECASE)


def _skipped_for_want_of_a_gpu(report: pytest.TestReport | pytest.CollectReport) -> bool:
    reason = report.longrepr
    return report.skipped and isinstance(reason, tuple) and _GPU.search(reason[2]) is not None


def tell_versions(config: Any) -> None:
    """In a worker of pytest-xdist: what the controller, which never imports torch, cannot know."""
    if "torch" in sys.modules:
        config.workeroutput[_VERSIONS] = versions()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
