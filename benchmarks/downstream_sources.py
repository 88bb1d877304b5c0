"""The source distribution of a project as the index has it, checked and unpacked. Nothing of it is built or run."""

from __future__ import annotations

import hashlib
import ssl
import tarfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.downstream_projects import Project, tomllib
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.releases.environment import without_this_python
from pytest_memleak.releases.processes import Processes
from pytest_memleak.releases.sources import Sources

# uv is told that it needs nothing, so that it looks at this package alone and builds nothing to see what else it wants.
_LOCKED = """\
[project]
name = "sdist"
version = "0"
requires-python = ">=3.10"
dependencies = ["{name}=={version}"]

[[tool.uv.dependency-metadata]]
name = "{name}"
version = "{version}"
requires-dist = []
"""
_TIMEOUT = 120.0


def unpacked(project: Project, folder: Path, sdists: Path, uv: Callable[[], str], sources: Sources) -> Path:
    """The folder that its tests are started in. An archive in `sdists` is not fetched, and nobody asks where uv is."""
    archive = next(sdists.glob(f"{project.name.replace('-', '[-_]')}-{project.version}.tar.gz"), None)
    data = archive.read_bytes() if archive else _fetched(project, folder, sdists, uv(), sources)
    if (sha256 := hashlib.sha256(data).hexdigest()) != project.sha256:
        raise BadInput(
            f"{project.pinned}: its source distribution has the sha256 {sha256}, and downstream.toml says "
            f"{project.sha256}: read its tests and conftests before you change that"
        )
    archive = next(sdists.glob(f"{project.name.replace('-', '[-_]')}-{project.version}.tar.gz"))
    with tarfile.open(archive) as files:
        root = folder / files.getnames()[0].partition("/")[0]
        files.extractall(folder, filter="data")
    return _completed(project, root)


def _completed(project: Project, root: Path) -> Path:
    found = {str(path.relative_to(root)) for path in root.rglob("conftest.py")}
    if unread := sorted(found - set(project.conftests)):
        raise BadInput(
            f"{project.pinned}: {', '.join(unread)} would run with its tests, and is not among the conftests that "
            "downstream.toml says were read: read it, and add it there if it is harmless"
        )
    start = root / project.folder
    for package in project.packages:
        (start / package / "__init__.py").touch()
    for one in project.folders:
        (start / one).mkdir(parents=True, exist_ok=True)
    return start


def _fetched(project: Project, folder: Path, sdists: Path, uv: str, sources: Sources) -> bytes:
    work = folder / f"lock-{project.name}"
    work.mkdir(parents=True, exist_ok=True)
    (work / "pyproject.toml").write_text(_LOCKED.format(name=project.name, version=project.version), encoding="utf-8")
    environment = without_this_python() | {"NO_COLOR": "1", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
    if sources.certificates:
        environment.setdefault("SSL_CERT_FILE", sources.certificates)
    # Or an index that has the wheels alone would do.
    command = [uv, "lock", *sources.arguments(), "--no-binary-package", project.name]
    locked = Processes().run(command, cwd=work, env=environment, timeout=_TIMEOUT)
    if locked.status:
        raise Unavailable(f"{project.pinned}: uv does not find it: {' '.join(locked.output.split())}")
    address = sdist_address(tomllib.loads((work / "uv.lock").read_text(encoding="utf-8"))["package"], project)
    try:
        data = _read(address, sources.certificates)
    except OSError as error:
        raise Unavailable(f"{project.pinned}: its source distribution cannot be fetched: {error}") from error
    sdists.mkdir(parents=True, exist_ok=True)
    (sdists / urllib.parse.urlsplit(address).path.rpartition("/")[2]).write_bytes(data)
    return data


def sdist_address(packages: Sequence[Mapping[str, Any]], project: Project) -> str:
    """From what uv.lock says of all packages."""
    said = next(package for package in packages if package["name"] == project.name.lower())
    if "sdist" not in said:
        raise Unavailable(f"{project.pinned}: the index has no source distribution of it")
    sdist: Mapping[str, str] = said["sdist"]
    return sdist["url"] if "url" in sdist else Path(sdist["path"]).resolve().as_uri()


def _read(address: str, certificates: str) -> bytes:
    trusted = ssl.create_default_context(cafile=certificates or None)
    with urllib.request.urlopen(address, timeout=_TIMEOUT, context=trusted) as answer:
        data: bytes = answer.read()
    return data
