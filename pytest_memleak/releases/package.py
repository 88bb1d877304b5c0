"""This plugin as it runs here, as a wheel that can be installed elsewhere.

Made of the files that are running, and not from an index: what is tried has to be this very code, whether it was
installed or runs from its source, and there is no need of a build tool.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest_memleak
from pytest_memleak.errors import Unavailable

NAME = "pytest-memleak"
_FOLDER = Path(pytest_memleak.__file__).resolve().parent
_WHEEL = "Wheel-Version: 1.0\nGenerator: memleak\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def _files() -> list[Path]:
    return sorted(
        path
        for path in _FOLDER.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.endswith((".pyc", ".tmp"))
    )


@cache
def fingerprint() -> str:
    """The same for the same code."""
    digest = hashlib.sha256()
    for path in _files():
        digest.update(str(path.relative_to(_FOLDER)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def make_wheel(folder: Path) -> Path:
    try:
        about = metadata.distribution(NAME)
    except metadata.PackageNotFoundError as error:
        raise Unavailable(
            f"{NAME} is not installed here, so it cannot go into other environments: install it"
        ) from error
    version, said, points = about.version, about.read_text("METADATA"), about.read_text("entry_points.txt")
    if not said or not points:
        raise Unavailable(f"the installed {NAME} lacks its metadata, so it cannot go into other environments")
    stem = f"{NAME.replace('-', '_')}-{version}"
    contents = {f"pytest_memleak/{path.relative_to(_FOLDER).as_posix()}": path.read_bytes() for path in _files()}
    info = f"{stem}.dist-info"
    contents |= {
        f"{info}/METADATA": said.encode(),
        f"{info}/WHEEL": _WHEEL.encode(),
        f"{info}/entry_points.txt": points.encode(),
    }
    record = f"{info}/RECORD"
    lines = [f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in contents.items()]
    contents[record] = ("".join(lines) + f"{record},,\n").encode()
    target = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return target


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
