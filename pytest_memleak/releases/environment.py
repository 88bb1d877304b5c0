"""Environments made by uv, which links what its cache has instead of copying it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name
from packaging.version import Version

from pytest_memleak.errors import MemleakError, Unavailable
from pytest_memleak.releases.cell import Environment
from pytest_memleak.releases.processes import Processes
from pytest_memleak.releases.sources import Sources

DISK_IS_FULL = "No space left on device"
_SLOWEST = 3600.0
"""Seconds for what may be a download of some GB."""
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")


class NotMade(MemleakError):
    """An environment that could not be had; the message is uv's own, on one line."""


def find_uv() -> str:
    """The one that `UV` names (as it does in what uv runs), beside this interpreter, its package's, or on the PATH."""
    if named := os.environ.get("UV"):
        return named
    beside = Path(sys.executable).parent / "uv"
    if os.access(beside, os.X_OK):
        return str(beside)
    if importlib.util.find_spec("uv"):
        import uv

        try:
            return str(uv.find_uv_bin())
        except FileNotFoundError:
            pass  # the package without its binary: then one on the PATH will do
    if found := shutil.which("uv"):
        return found
    raise Unavailable("environments are made by uv, which is not here: pip install 'pytest-memleak[matrix]'")


def without_this_python() -> dict[str, str]:
    """The environment variables, less what would lead another interpreter to this one's packages."""
    return {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}


@dataclass(frozen=True)
class Uv:
    binary: str
    sources: Sources
    processes: Processes

    def make(self, wanted: Environment, folder: Path, further: tuple[str, ...] = ()) -> tuple[Path, dict[str, str]]:
        """The interpreter of a new environment, and all packages that it has."""
        self._run(["venv", "--python", wanted.python or sys.executable, "--no-project", str(folder)])
        python = folder / "bin" / "python"
        into = ["--python", str(python)]
        self._run(["pip", "install", *into, *self.sources.arguments(), *wanted.all_requirements(), *further])
        said = self._run(["pip", "list", *into, "--format", "json"])
        installed = {canonicalize_name(one["name"]): str(one["version"]) for one in _json(said)}
        for package, release in wanted.versions:
            got = installed.get(canonicalize_name(package), "")
            if not got or Version(got).public != Version(release).public:
                raise NotMade(f"asked for {package} {release}, got {got or 'none'}")
        return python, dict(sorted(installed.items()))

    def _run(self, arguments: list[str]) -> str:
        # No interpreter is downloaded unasked, and no colours are wanted in what is passed on.
        env = {"UV_PYTHON_DOWNLOADS": "never"} | without_this_python() | {"NO_COLOR": "1", "UV_NO_PROGRESS": "1"}
        if self.sources.certificates:
            env.setdefault("SSL_CERT_FILE", self.sources.certificates)
        try:
            done = self.processes.run([self.binary, *arguments], cwd=Path.cwd(), env=env, timeout=_SLOWEST)
        except OSError as error:
            raise NotMade(f"{self.binary} cannot be run: {error.strerror or error}") from error
        if done.timed_out:
            raise NotMade(f"uv {arguments[0]} took longer than {_SLOWEST:.0f} s")
        if done.status:
            raise NotMade(told_by_uv(done.output) or f"uv {arguments[0]} left with status {done.status}")
        return done.output


def _json(said: str) -> list[dict[str, str]]:
    # Warnings stand before the document.
    line = next((line for line in said.splitlines() if line.startswith("[{")), "")
    try:
        found: list[dict[str, str]] = json.loads(line)
    except ValueError as error:
        raise NotMade(f"uv's list of what it installed cannot be read: {said[:200]!r}") from error
    return found


def told_by_uv(output: str) -> str:
    """Its error on one line: it draws trees, breaks lines, and begins with what it was about."""
    if DISK_IS_FULL in output:
        line = next(line for line in output.splitlines() if DISK_IS_FULL in line)
        return f"the disk is full: {_plain(line)}"
    lines = output.splitlines()
    start = next((at for at, line in enumerate(lines) if line.lstrip().startswith(("error:", "×"))), 0)
    end = next((at for at, line in enumerate(lines) if line.lstrip().startswith("hint:")), len(lines))
    told = " ".join(filter(None, map(_plain, lines[start:end]))).removeprefix("error: ")
    return re.sub(r":? (cause|Caused by): ", ": ", told)


def _plain(line: str) -> str:
    return re.sub(r"^[\s×╰─▶│├]+", "", line).strip()
