"""In the process of a rank: pytest with the command line of the run it belongs to, for one test, told to a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator
from typing import Any, TextIO

import pytest
from _pytest.config import _prepareconfig, create_terminal_writer

from pytest_memleak.insides import own_id, recorded_failure
from pytest_memleak.ranks.group import ProcessGroup
from pytest_memleak.ranks.job import Job
from pytest_memleak.records.attributes import RANK

BEGIN, RAISED, REPORT, SUBREPORT = "begin", "raised", "report", "subreport"
COLLECTED, INTERNAL, WARNING, END = "collected", "internal", "warning", "end"
"""The kinds of lines that a rank writes."""

# What is the whole run's: files for people, which tests, how many at once, when to stop.
_NOT_HERE: dict[str, Any] = {
    "numprocesses": None, "maxprocesses": None, "dist": "no", "distload": False, "looponfail": False, "tx": [],
    "forked": False, "usepdb": False, "xmlpath": None, "htmlpath": None, "report_log": None, "maxfail": 0,
    "lf": False, "failedfirst": False, "newfirst": False, "stepwise": False, "keyword": "", "markexpr": "",
    "deselect": None, "reruns": 0, "cacheclear": False, "log_file": os.devnull, "memleak_progress": "never",
}  # fmt: skip
_NO_PLUGINS = ("lfplugin", "nfplugin", "stepwiseplugin")


def run(job: Job, rank: int) -> tuple[bool, int]:
    """Whether its part of the test ended before the body did, and pytest's exit status."""
    with open(job.told(rank), "w", encoding="utf-8", buffering=1) as lines:
        telling = Telling(job, lines)
        # What is printed goes to the rank's own files, and is there also when it is killed.
        config = _prepareconfig([*job.args, *job.more_args, "--capture=no", "-o", "faulthandler_timeout=0"], None)
        try:
            _only_here(config, job, rank)
            config.pluginmanager.register(telling, RANK)
            config.pluginmanager.register(ProcessGroup(job.backend), "memleak-process-group")
            status = config.hook.pytest_cmdline_main(config=config)
        finally:
            config._ensure_unconfigure()
        telling.tell(END, status=int(status))
    return telling.stopped_early, int(status)


def _only_here(config: pytest.Config, job: Job, rank: int) -> None:
    for name, value in (_NOT_HERE | dict(job.options)).items():
        if hasattr(config.option, name):
            setattr(config.option, name, value)
    config.option.basetemp = os.path.join(job.folder, f"tmp-{rank}")
    config.args = [job.path]
    for name in _NO_PLUGINS:
        config.pluginmanager.set_blocked(name)


class Telling:
    """Finds the test among what is collected, and writes down what becomes of it."""

    def __init__(self, job: Job, lines: TextIO) -> None:
        self.stopped_early = False
        """A body that did not come to its end: the other ranks may wait for it."""
        self._job = job
        self._lines = lines
        self._config: pytest.Config | None = None

    def tell(self, kind: str, **data: object) -> None:
        self._lines.write(json.dumps({"kind": kind} | data, default=str) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        self._config = config
        # pytest before 8.4 compares values by it, and so it is there, and writes to nowhere.
        reporter: Any = config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process
            reporter._tw = create_terminal_writer(config, nowhere)
        # Its marker is known by now. One rank that runs again alone would wait for the others for ever.
        config.pluginmanager.unregister(name="rerunfailures")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if own_id(item) == self._job.nodeid][:1]
        self.tell(COLLECTED, found=len(items), failed="")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.stopped_early = True
            self.tell(COLLECTED, found=0, failed=str(report.longrepr))

    def pytest_internalerror(self, excrepr: object) -> None:
        self.stopped_early = True
        self.tell(INTERNAL, text=str(excrepr))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        return (yield from self._phase("setup"))

    # The innermost of all wrappers: a verdict on a body that came to its end keeps nobody waiting.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield from self._phase("call")
        if (recorded := recorded_failure(item)) is not None:  # a unittest.TestCase raises nothing
            self._stopped_by(recorded)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self) -> Generator[None, object, object]:
        self._begin("teardown")
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        assert self._config is not None
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        # A subtest's is one of the call as well.
        self.tell(REPORT if type(report) is pytest.TestReport else SUBREPORT, data=data)

    def pytest_warning_recorded(self, warning_message: Any, when: str) -> None:
        if when in ("config", "collect"):
            return  # the run has said it
        category: type[Warning] = warning_message.category
        self.tell(
            WARNING,
            text=str(warning_message.message),
            category=f"{category.__module__}.{category.__qualname__}",
            file=warning_message.filename,
            line=warning_message.lineno,
        )

    def _begin(self, when: str) -> None:
        # What was printed before is pytest's own, of its start.
        self.tell(BEGIN, when=when, printed=[_size(stream) for stream in (sys.stdout, sys.stderr)])

    def _phase(self, when: str) -> Generator[None, object, object]:
        self._begin(when)
        try:
            return (yield)
        except BaseException as error:
            self._stopped_by(error)
            raise

    def _stopped_by(self, error: BaseException) -> None:
        self.stopped_early = True
        # Its report takes a moment to be made, and the rank may be stopped before.
        self.tell(RAISED, text=f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def _size(stream: TextIO) -> int:
    try:
        stream.flush()
        return os.fstat(stream.fileno()).st_size
    except (OSError, ValueError):
        return 0
