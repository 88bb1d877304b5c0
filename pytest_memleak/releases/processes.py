"""Programs that are waited for from several threads, and that all end when somebody says stop."""

from __future__ import annotations

import contextlib
import locale
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE = 5.0
"""Seconds that a program has to end by itself before it is killed."""
_LOOK = 0.1
"""Seconds after which it is looked whether a program has ended whose output goes on."""
_PIPE = 1024**2
"""Bytes: no less than a pipe holds."""


class Stopped(Exception):
    """Nothing is started any more: somebody pressed Ctrl-C."""


@dataclass(frozen=True)
class Ended:
    status: int
    """Negative: the signal that ended it."""
    output: str
    timed_out: bool = False


class Processes:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False
        self._hurried = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def run(self, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float | None = None) -> Ended:
        """The program's end, and what it said on both streams. Raises `Stopped` if it was not let go on."""
        with self._lock:
            if self._stopped:
                raise Stopped
            # A group of its own: Ctrl-C at a terminal is for us to pass on, and its children end with it.
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._running.add(process)
        try:
            output, timed_out = _wait(process, timeout)
        finally:
            with self._lock:
                self._running.discard(process)
        if self._stopped:
            raise Stopped
        # None: not even SIGKILL ended it in time, because a driver holds it, say.
        status = -signal.SIGKILL if process.returncode is None else process.returncode
        return Ended(status, output, timed_out)

    def stop(self) -> None:
        """Ends all of them; whoever waits for one gets `Stopped`."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        try:
            for process in running:
                _signal(process, signal.SIGTERM)
            end = time.monotonic() + _GRACE
            while not self._hurried and time.monotonic() < end and any(one.poll() is None for one in running):
                time.sleep(_LOOK / 2)
        finally:
            # Where one has ended, whoever waits for it ends what it left behind: its number may be another's by now.
            for process in running:
                if process.poll() is None:
                    _signal(process, signal.SIGKILL)

    def hurry(self) -> None:
        """No grace for those that are being stopped. For handlers of signals: it takes no lock, and kills nothing."""
        self._hurried = True


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> tuple[str, bool]:
    output = bytearray()
    ended = False
    try:
        ended = _follow(process, output, timeout)
        if not ended:
            _signal(process, signal.SIGTERM)
            _follow(process, output, _GRACE)
    finally:
        # Also where it has ended: what it started and left behind would keep memory from the next one.
        _signal(process, signal.SIGKILL)
        _follow(process, output, _GRACE)
        if process.stdout:
            process.stdout.close()
    # A pipe and no file: a program that says that the disk is full has to be heard.
    return output.decode(locale.getpreferredencoding(False), "replace"), not ended


def _follow(process: subprocess.Popen[bytes], output: bytearray, seconds: float | None) -> bool:
    """Takes what it says until it has ended, and tells whether it has.

    That the pipe is closed is no such sign: a child that left the group keeps it open as long as it likes.
    """
    if process.stdout is None or process.stdout.closed:
        return process.poll() is not None
    pipe = process.stdout.fileno()
    end = float("inf") if seconds is None else time.monotonic() + seconds
    os.set_blocking(pipe, False)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None  # before the reading, so that its last words are among what is read
            left = min(end - time.monotonic(), _LOOK)
            if ended or selector.select(max(left, 0)):
                with contextlib.suppress(BlockingIOError):
                    said = os.read(pipe, _PIPE)
                    output += said
                    if not said and not ended:
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            process.wait(max(left, 0))
            if ended:
                return True
            if left <= 0:
                return process.poll() is not None


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # The group may be gone by itself.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
