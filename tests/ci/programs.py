"""What a runner of CI has on its PATH, with stand-ins for all that would leave this machine or change it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pytest_memleak.report.json_file import write

ROOT = Path(__file__).parents[2]
_FOREIGN = ("CI_", "GH_", "GITHUB_", "MEMLEAK_", "PYTEST_", "RUNNER_")
_PYTHON = """#!/bin/sh
if [ "$1 $2 $3" = "-m pip install" ]; then shift 3; printf '%s\\n' "$*" >>"{installed}"; exit 0; fi
if [ "$1 $2" = "-m pytest" ] && [ -e "{pytest}" ]; then shift 2; exec "{python}" "{pytest}" "$@"; fi
if [ "$1 $2" = "-m pytest_memleak" ] && [ -e "{memleak}" ]; then shift 2; exec "{python}" "{memleak}" "$@"; fi
exec "{python}" "$@"
"""
_STAND_IN = """#!/bin/sh
exec "{python}" "{program}" "{state}" "$@"
"""


def shown_of_the_sample() -> str:
    """How the summary of fixtures/downstream begins, as docs/ci.md has it."""
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    return page.partition("<!-- the summary of fixtures/downstream -->")[2].partition("<!-- until here -->")[0].strip()


class Programs:
    """``python`` is the one that runs the tests; what it would install is written down."""

    def __init__(self, machine: Path) -> None:
        self._machine = machine
        self._pytest, self._memleak = machine / "pytest.py", machine / "memleak.py"
        (machine / "bin").mkdir(parents=True)
        paths = {"installed": machine / "installed", "pytest": self._pytest, "memleak": self._memleak}
        self._write("python", _PYTHON.format(**paths, python=sys.executable))

    def _write(self, name: str, text: str) -> None:
        path = self._machine / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def stand_in(self, name: str, program: str) -> None:
        """A program of this folder, with a file that keeps what it is to know."""
        path = Path(__file__).with_name(program)
        self._write(name, _STAND_IN.format(python=sys.executable, program=path, state=self._machine / f"{name}.json"))

    def remove(self, name: str) -> None:
        (self._machine / "bin" / name).unlink()

    def instead_of_pytest(self, program: str) -> None:
        self._pytest.write_text(program)

    def real_pytest(self) -> None:
        self._pytest.unlink(missing_ok=True)

    def instead_of_memleak(self, program: str) -> None:
        self._memleak.write_text(program)

    def pytest_comes_to(self, results: dict[str, Any], status: int) -> None:
        """It writes these, and its arguments into a file ``told``."""
        found = self._machine / "results.json"
        write(found, results)
        self.instead_of_pytest(
            "import pathlib, shutil, sys\n"
            "options = dict(one.split('=', 1) for one in sys.argv[1:] if '=' in one)\n"
            "pathlib.Path('told').write_text('\\n'.join(sys.argv[1:]))\n"
            f"shutil.copy({str(found)!r}, options['--memleak-json'])\n"
            f"sys.exit({status})\n"
        )

    @property
    def installed(self) -> list[str]:
        return (self._machine / "installed").read_text().splitlines()

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
        path = f"{self._machine / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return kept | {"CI": "true", "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
