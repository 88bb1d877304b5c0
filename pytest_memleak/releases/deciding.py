"""What of files and variables may decide what becomes of a test. Where one has changed, an old result is of no use."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pytest_memleak.errors import Unavailable
from pytest_memleak.releases.cell import Run

_READ = (".py", ".toml", ".ini", ".cfg", ".json")
_MOST_FILES = 20_000
_LARGE = 1024**2
"""Bytes of a file that is data rather than a test: its time and size have to do."""
_OF_PARENTS = (
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "pytest.toml",
    ".pytest.toml",
    "pyproject.toml",
    "setup.cfg",
    "tox.ini",
)
"""What pytest looks for in the folders above, too."""
_VARIABLES = (
    "MEMLEAK_",
    "PYTEST_",
    "HF_",
    "TRANSFORMERS_",
    "ACCELERATE_",
    "BNB_",
    "UNSLOTH_",
    "PYTORCH_",
    "TORCH_",
    "CUDA_",
    "UV_",
    "PIP_",
)
_OF_NO_CONSEQUENCE = ("UV_CACHE_DIR", "PIP_CACHE_DIR", "UV_LINK_MODE")
"""Whoever was out of disk sets them, and wants to go on."""

_digests: dict[Path, str] = {}


def variables() -> list[tuple[str, str]]:
    return sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith(_VARIABLES) and name not in _OF_NO_CONSEQUENCE
    )


def tests(run: Run, written: frozenset[Path]) -> list[str]:
    """All that tests may read and import: what lies below the folder that they run in, and what is named elsewhere.

    `written` is left out.
    """
    folder = run.case.folder if run.case else Path.cwd()
    return [_digest(place, written) for place in (folder, *_named(run, folder))]


def _named(run: Run, folder: Path) -> list[Path]:
    """What arguments and requirements name and is not read with the folder."""
    found: dict[Path, None] = {}
    below = folder.resolve()
    for argument in run.arguments:
        # A node id, the value of an option.
        for text in (argument.partition("::")[0], argument.partition("=")[2]):
            if (path := _existing(text)) and not path.is_relative_to(below):
                found[path] = None
    further = [argument[1:] for argument in run.arguments if argument.startswith("@")]  # files of arguments
    for requirement in run.environment.requirements:
        # lib[extra] @ file:///some/lib.whl ; python_version > "3"
        text = requirement.partition("file://")[2] or requirement.rpartition(" @ ")[2]
        text = text.partition(";")[0].strip()
        further += [text, text.partition("[")[0]]
    for text in further:
        # Also those of the folder: wheels and texts are not among what is read there.
        if (path := _existing(text)) and (path.is_file() or not path.is_relative_to(below)):
            found[path] = None
    return list(found)


def _existing(text: str) -> Path | None:
    # Too long a name, one with a zero byte, links in a circle: it names no file. Devices and pipes are not read.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(text)
        if text and (path.is_file() or path.is_dir()):
            return path.resolve()
    return None


def _digest(place: Path, written: frozenset[Path]) -> str:
    """Read once: it is what the call is about."""
    if place not in _digests:
        digest = hashlib.sha256(str(place).encode())
        for count, path in enumerate(_without(written, place)):
            if count == _MOST_FILES:
                raise Unavailable(f"more than {count:,} files lie below {place}, too many to tell whether one changes")
            status = path.stat()
            large = status.st_size > _LARGE
            data = f"{status.st_mtime_ns} {status.st_size}".encode() if large else path.read_bytes()
            digest.update(str(path).encode() + b"\0" + hashlib.sha256(data).digest())
        _digests[place] = digest.hexdigest()
    return _digests[place]


def _without(written: frozenset[Path], place: Path) -> Iterator[Path]:
    # As they are, since the command line may name them with .. or by a link.
    left_out = {path.resolve() for path in written}
    names = {path.name for path in left_out}
    yield from _above(place)
    for path in _below(place) if place.is_dir() else (place,):
        if path.name not in names or path.resolve() not in left_out:
            yield path


def _above(place: Path) -> Iterator[Path]:
    for folder in place.parents:
        yield from (path for name in _OF_PARENTS if (path := folder / name).is_file())


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        # Environments and what tools leave behind are no part of the tests.
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not Path(place, name, "pyvenv.cfg").exists()
        )
        yield from (Path(place, name) for name in sorted(names) if name.endswith(_READ) and Path(place, name).is_file())
