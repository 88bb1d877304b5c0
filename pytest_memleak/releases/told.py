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
_ELSEWHERE = "memleak_elsewhere"


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    # Without autoload nothing else loads the plugin. The variable stays: plugins that the caller names with -p would be
    # there twice. If he names this one, it is there already.
    if os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD") and not pluginmanager.is_blocked("memleak"):
        from pytest_memleak import plugin

        if not pluginmanager.is_registered(plugin):
            pluginmanager.import_plugin(plugin.__name__)


def pytest_configure(config: pytest.Config) -> None:
    if not os.environ.get(PATH):
        return
    # A worker's reports come to the controller, and it alone writes.
    plugin = _Worker(config) if hasattr(config, "workerinput") else _Told(Path(os.environ[PATH]))
    config.pluginmanager.register(plugin, "memleak-told")


class _Worker:
    """In a worker of pytest-xdist: there the tests import what they need, and the controller does not."""

    def __init__(self, config: Any) -> None:
        self._config = config  # with attributes of xdist's own

    def pytest_sessionfinish(self) -> None:
        self._config.workeroutput[_ELSEWHERE] = _from_elsewhere()


class _Told:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._elsewhere: dict[str, str] = {}

    def _write(self, what: str, **data: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, **data}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write("uncollected", node=report.nodeid, text=report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._write("collected", nodes=[item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._write("collected", nodes=ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        # One that was killed has no last words.
        self._elsewhere |= getattr(node, "workeroutput", {}).get(_ELSEWHERE, {})

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
        self._write("end", status=int(exitstatus), elsewhere=self._elsewhere | _from_elsewhere())


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        return str(crash.message)
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return report.longreprtext


def _from_elsewhere() -> dict[str, str]:
    """Packages under trial whose module was imported from outside of this environment."""
    found = {}
    for name in filter(None, os.environ.get(PACKAGES, "").split(",")):
        for module in _modules(name):
            file = getattr(sys.modules.get(module), "__file__", None)
            if file and not Path(file).is_relative_to(sys.prefix):
                found[name] = str(file)
    return found


def _modules(package: str) -> set[str]:
    """Their names as they are imported. Not `packages_distributions`, which before Python 3.11 reads only a file that
    wheels of today do not have."""
    names: set[str] = set()
    for found in metadata.distributions(name=package):
        names.update((found.read_text("top_level.txt") or "").split())
        names.update(path.parts[0].partition(".")[0] for path in found.files or () if path.suffix in (".py", ".so"))
    return names - {""}
