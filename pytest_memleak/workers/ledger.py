"""Where the processes of one user's runs on one machine tell each other what they hold of the cards.

A folder with one file for each process, which keeps a lock on it: the system lets go of that whatever became of the
process, so what a killed one held is free. Whoever reads and decides holds one more lock meanwhile, for all cards at
once: nobody ever holds one card while he waits for another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers.holders import Holder

# Of what is written in the files: processes that do not understand each other must not share a folder.
_FORMAT = 1
_ENTRY = ".holder"
_CLOSED = -1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0001, 0.01
"""Seconds between two looks whether the turn has come: most turns of others end within the first."""


class Ledger:
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or shared_folder()
        self._name = ""
        self._turn = self._entry = _CLOSED
        _LEDGERS.add(self)

    @contextlib.contextmanager
    def turn(self, who: str, patience: float) -> Iterator[list[Holder]]:
        """Nobody else reads or writes until the end. Gives what the other living processes hold.

        `who`: for those whose `patience`, in seconds, ends while they wait for this turn's end.
        """
        if self._turn == _CLOSED:
            self._turn = _opened(self.folder / "turn.lock")
        try:
            self._begin_turn(who, patience)
            yield list(self._others())
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _begin_turn(self, who: str, patience: float) -> None:
        until = time.monotonic() + patience
        pause = _FIRST_PAUSE
        while not _locked(self._turn):
            if time.monotonic() > until:
                raise Unavailable(
                    f"{_text_of(self._turn)} looks for a card, and has not come to an end for {patience:.0f} s: the "
                    "driver may hang on a card. See whether nvidia-smi answers, and end that process, or leave the "
                    "cards alone (--memleak-share=off)"
                )
            time.sleep(pause)  # a lock of the system is waited for without end, or asked for again
            pause = min(2 * pause, _LONGEST_PAUSE)
        with contextlib.suppress(OSError):  # whose turn it is counts, and not that it is told
            _put(self._turn, who.encode())

    def write(self, holder: Holder) -> None:
        """What this process holds. To be called in its turn. It is told whole, or not at all."""
        try:
            if self._entry == _CLOSED:
                self._name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}{_ENTRY}"
                self._entry = _opened(self.folder / self._name)
                fcntl.flock(self._entry, fcntl.LOCK_EX)
            _put(self._entry, holder.as_json().encode())
        except BaseException as error:
            self.withdraw()
            if isinstance(error, OSError):
                raise Unavailable(
                    f"{self.folder} is where this user's test runs tell each other which cards they use, and nothing "
                    f"can be written there ({error}): make room, or point TMPDIR elsewhere (the same for all runs)"
                ) from error
            raise

    def withdraw(self) -> None:
        """Nothing is told of this process any more, until it writes again. Whoever's turn it is."""
        if self._entry != _CLOSED:
            (self.folder / self._name).unlink(missing_ok=True)
            os.close(self._entry)
        self._entry, self._name = _CLOSED, ""

    def close(self) -> None:
        self.withdraw()
        self.forget()

    def forget(self) -> None:
        """Closes the files without a word to the others. They are opened anew if they are needed again."""
        for descriptor in (self._entry, self._turn):
            if descriptor != _CLOSED:
                os.close(descriptor)
        self._entry = self._turn = _CLOSED
        self._name = ""

    def _others(self) -> Iterator[Holder]:
        for name in os.listdir(self.folder):
            if name.endswith(_ENTRY) and name != self._name and (holder := self._living(self.folder / name)):
                yield holder

    def _living(self, path: Path) -> Holder | None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None  # a process that ends takes its file away, whoever's turn it is
        try:
            if _locked(descriptor):
                path.unlink(missing_ok=True)
                return None
            # Whoever wrote it is there, and did so in his turn: it is whole.
            return Holder.from_json(_text_of(descriptor))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            pid = path.name.partition("-")[0]
            raise Unavailable(
                f"{path} is where process {pid} tells which cards it uses, and it cannot be read "
                f"({type(error).__name__}: {error}): end that process, and begin again"
            ) from error
        finally:
            os.close(descriptor)


def shared_folder() -> Path:
    """Below the system's folder for temporary files, and this user's alone: others may not even read it."""
    folder = Path(tempfile.gettempdir(), f"pytest-memleak-cards-{os.getuid()}-{_FORMAT}")
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unavailable(
            f"{folder} is where this user's test runs tell each other which cards they use, and it is not a folder of "
            "this user's alone: remove it, or point TMPDIR elsewhere (the same for all runs)"
        )
    return folder


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _locked(descriptor: int) -> bool:
    """Whether it is this process's now. Nobody waits for it here."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _text_of(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()


def _put(descriptor: int, text: bytes) -> None:
    if (written := os.pwrite(descriptor, text, 0)) != len(text):
        raise OSError(f"{written} of {len(text)} bytes were written")
    os.ftruncate(descriptor, len(text))


_LEDGERS: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _forget_all() -> None:
    for ledger in list(_LEDGERS):
        ledger.forget()


# A forked child has the same open files, and with them its parent's locks: it would hold for a parent that is dead.
os.register_at_fork(after_in_child=_forget_all)
