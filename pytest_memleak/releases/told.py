"""A plugin of the pytest that runs inside an environment: writes down, line by line, what became of each test.

Line by line, because a process that is killed has no end at which it could write a document.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

PATH = "_MEMLEAK_TOLD"
"""The environment variable with the file to write."""
PACKAGES = "_MEMLEAK_PACKAGES"
"""The one with the packages whose releases are tried; they must not come from elsewhere."""


def pytest_configure(config: pytest.Config) -> None:
    # A worker's reports come to the controller, and it alone writes.
    if os.environ.get(PATH) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Told(Path(os.environ[PATH])), "memleak-told")


class _Told:
    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, what: str, **data: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **data}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("uncollected", node=report.nodeid, text=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write("collected", nodes=[item.nodeid for item in session.items])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(
            "report",
            node=report.nodeid,
            when=report.when,
            outcome=report.outcome,
            text=report.longreprtext,
            message=_message(report),
            xfail=getattr(report, "wasxfail", None),
            seconds=report.duration,
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self._write("end", status=int(exitstatus), elsewhere=_from_elsewhere())


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return report.longreprtext


def _from_elsewhere() -> dict[str, str]:
    """Packages under trial whose module was imported from outside of this environment."""
    wanted = set(filter(None, os.environ.get(PACKAGES, "").split(",")))
    found = {}
    for module, packages in metadata.packages_distributions().items():
        for package in packages:
            name = package.lower().replace("_", "-").replace(".", "-")
            file = getattr(sys.modules.get(module), "__file__", None)
            if name in wanted and file and not Path(file).is_relative_to(sys.prefix):
                found[name] = str(file)
    return found
