"""Files that reports are written to: whole or not at all, and asked for before any test runs."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pytest_memleak.errors import BadInput, Unavailable

# A path with a zero byte is a ValueError (as BadInput is, which is caught before), links in a circle a RuntimeError.
_CANNOT = (OSError, ValueError, RuntimeError)


def check_writable(path: str | os.PathLike[str], what: str = "JSON file") -> Path:
    """The path, made absolute, if a file can be written there. Asked before the tests run; leaves nothing behind."""
    text = os.fspath(path)
    if not text or text.endswith(("/", os.sep)):
        raise BadInput(f"{text!r} does not name a file: give the path of the {what} to write")
    try:
        target = _target(text, what)
        folder = _nearest_folder(target)
        probe = _temporary_in(folder)
        os.close(_create(probe))
        probe.unlink()
    except BadInput:
        raise
    except _CANNOT as error:
        raise BadInput(f"{text!r} cannot be written: {_reason(error)}; give a path in a folder that can be") from error
    return target


def write(path: str | os.PathLike[str], data: bytes, what: str = "JSON file") -> None:
    """Replaces what stood there in one step; after a failure, what stood there before still does."""
    try:
        target = _target(os.fspath(path), what)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_in(target.parent)
        try:
            with os.fdopen(_create(temporary), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except BadInput:
        raise
    except _CANNOT as error:
        raise Unavailable(f"the {what} could not be written to {os.fspath(path)!r}: {_reason(error)}") from error


def _target(text: str, what: str) -> Path:
    # Resolved, so that a link stays one and the file behind it is replaced.
    target = Path(text).expanduser().resolve()
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    if stat.S_ISDIR(mode):
        raise BadInput(f"{text!r} is a folder: give the path of the {what} to write")
    if not stat.S_ISREG(mode):
        # Replacing /dev/null by a file would break the machine.
        raise BadInput(f"{text!r} is a device, socket or pipe: give the path of an ordinary file")
    return target


def _nearest_folder(target: Path) -> Path:
    """The closest folder that exists; what is missing below it is made when the file is written."""
    for folder in target.parents:
        try:
            folder.stat()
        except FileNotFoundError:
            continue
        if not folder.is_dir():
            raise NotADirectoryError(None, "it is not a folder", str(folder))
        return folder
    raise FileNotFoundError(None, "no such folder", str(target.parent))


def _temporary_in(folder: Path) -> Path:
    return folder / f".memleak-{secrets.token_hex(8)}.tmp"


def _create(path: Path) -> int:
    # Not tempfile: its files are private to the user, and a report is for others (a CI's upload) as any new file is.
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        # The probe's own name tells nobody anything; the folder it stood in does.
        place = Path(os.fsdecode(error.filename)) if error.filename else None
        if place is not None and place.name.startswith(".memleak-"):
            place = place.parent
        return f"{place}: {error.strerror}" if place else error.strerror
    return str(error)
