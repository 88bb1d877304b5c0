"""One process at a time changes a baseline: the others wait, and then find what it has written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """The folder is locked, and not the file: that is replaced, and whoever waited for it would hold the old one.

    A lock goes with its process, however that ends. There is no lock file to be left behind in the project.
    """
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # file systems of a network lock no folders
            os.close(descriptor)
            descriptor = os.open(_beside(path), os.O_CREAT | os.O_RDWR, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir(), f"pytest-memleak-{os.getuid()}-{name}.lock")
