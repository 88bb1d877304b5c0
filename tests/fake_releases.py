"""Small packages with several releases in a folder: environments are made of them without a network or torch."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

_WHEEL = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    said = "".join(f"Requires-Dist: {one}\n" for one in requires)
    files = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{said}".encode(),
        f"{stem}.dist-info/WHEEL": _WHEEL.encode(),
    }
    return _pack(folder, stem, files)


def _pack(folder: Path, stem: str, files: dict[str, bytes]) -> Path:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}")
    record = f"{stem}.dist-info/RECORD"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(record, "\n".join([*lines, f"{record},,", ""]))
    return path


def _repack(folder: Path, package: str, done: set[str]) -> None:
    """What is installed here, and what it requires, as wheels."""
    if package in done:
        return
    done.add(package)
    found = metadata.distribution(package)
    files = {}
    for path in found.files or ():
        place = Path(str(found.locate_file(path)))
        if not str(path).startswith("..") and place.suffix != ".pyc" and path.name != "RECORD" and place.is_file():
            files[str(path)] = place.read_bytes()
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/METADATA"))
    _pack(folder, info.removesuffix(".dist-info"), files)
    for text in found.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            _repack(folder, requirement.name, done)


def release(folder: Path, version: str, requires: tuple[str, ...] = (), source: str = "") -> None:
    """One of the package ``fakelib``, which knows its own number."""
    number = tuple(int(part) for part in version.partition("rc")[0].split("."))
    make_wheel(folder, "fakelib", version, {"fakelib.py": f"VERSION = {number}\n{source}".encode()}, requires)


@pytest.fixture(scope="session")
def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        pytest.skip("needs uv: pip install uv")
    return found


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1.0 to 1.6 of fakelib, a pre-release, one that cannot be imported, one that cannot be installed."""
    folder = tmp_path_factory.mktemp("wheels")
    _repack(folder, "pytest-xdist", set())  # and pytest itself
    # An empty one of the same number: the true one is hundreds of MB.
    make_wheel(folder, "torch", metadata.version("torch"), {"torch.py": b""})
    for version in ("1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "2.0rc1"):
        release(folder, version)
    release(folder, "1.7", source="raise ImportError('this release is broken')\n")
    release(folder, "1.8", requires=("nowhere-to-be-found>=3",))
    return folder


@dataclass
class Project:
    """A folder with tests, in which ``memleak`` is called."""

    folder: Path
    env: dict[str, str]

    def write(self, text: str, name: str = "test_it.py") -> None:
        (self.folder / name).write_text(text)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pytest_memleak", *arguments],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def memleak(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def data(self, name: str = "out.json") -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / name).read_text())
        return read

    def cells(self, package: str = "fakelib", name: str = "out.json") -> dict[str, dict[str, Any]]:
        return {cell["versions"][package]: cell for cell in self.data(name)["cells"]}

    def wait_for(self, process: subprocess.Popen[str], when: Path) -> None:
        end = time.monotonic() + 120
        while not when.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert when.exists(), process.communicate(timeout=10)

    def interrupt(self, process: subprocess.Popen[str], when: Path, number: signal.Signals) -> tuple[str, str]:
        """Ctrl-C, once a file is there."""
        self.wait_for(process, when)
        process.send_signal(number)
        return process.communicate(timeout=60)


@pytest.fixture
def project(tmp_path: Path, wheels: Path, uv: str) -> Project:
    root = Path(__file__).resolve().parents[1]
    here = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_", "PYTEST_"))}
    env = here | {
        "UV": uv,
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(wheels),
        # Of the tests alone: packages of these names are others elsewhere.
        "UV_CACHE_DIR": str(wheels.parent / "uv-cache"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONPATH": str(root),
    }
    (tmp_path / "tmp").mkdir()
    folder = tmp_path / "project"
    folder.mkdir()
    return Project(folder, env)
