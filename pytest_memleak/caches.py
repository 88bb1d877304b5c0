"""The folder below the user's cache where this package keeps what it made: libraries, results of releases."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pytest_memleak.errors import Unavailable


def cache_folder(words: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        folder = (Path(base) if base else Path.home() / ".cache") / "pytest-memleak"
    except RuntimeError as error:
        # A container that runs as a number. No folder below /tmp instead: that is everybody's, and code is loaded.
        raise Unavailable(
            f"{words} has no cache folder: this user (uid {os.getuid()}) has no home; set XDG_CACHE_HOME to one"
        ) from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"{words} has no cache folder: {error}; set XDG_CACHE_HOME to one") from error
    # Code is loaded from here: nobody else may put any in.
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(
            f"{folder} belongs to another user or can be written by others, so no code is loaded from it; "
            "run chmod 700 on it, or set XDG_CACHE_HOME to a folder of your own"
        )
    return folder
