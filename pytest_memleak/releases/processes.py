"""Programs that are waited for from several threads, and that all end when somebody says stop."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE = 5.0
"""Seconds that a program has to end by itself before it is killed."""


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
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

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
                text=True,
                errors="replace",
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
        return Ended(process.returncode, output, timed_out)

    def stop(self) -> None:
        """Ends all of them; whoever waits for one gets `Stopped`."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            _signal(process, signal.SIGTERM)
        end = time.monotonic() + _GRACE
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
            # Also where it has ended: what it had started may not have.
            _signal(process, signal.SIGKILL)


def _wait(process: subprocess.Popen[str], timeout: float | None) -> tuple[str, bool]:
    try:
        return process.communicate(timeout=timeout)[0], False
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGTERM)
        try:
            output = process.communicate(timeout=_GRACE)[0]
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            output = process.communicate()[0]
        return output, True


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    # The group may be gone by itself.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
