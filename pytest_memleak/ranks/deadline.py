"""The time that the ranks of a test have: when it is up they are asked what they are doing, and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType

from pytest_memleak.ranks.job import ASKED, Job

_TO_ANSWER = 0.5
"""Seconds; all are asked before the first is killed, or the others would tell of that."""


class Deadline:
    """A thread beside the one that waits for the ranks, who may be stuck, stopped, or deaf to signals."""

    def __init__(self, job: Job) -> None:
        self.hung: dict[int, str] = {}
        """The ranks whose time was up, with what the system says of them."""
        self.lingering: set[int] = set()
        """Those that had said all, and whose processes did not end."""
        self._job = job
        self._all_gone = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Deadline:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._all_gone.set()
        self._thread.join()

    def _watch(self) -> None:
        if self._all_gone.wait(self._job.timeout):
            return
        self._ask()
        while True:  # one may come up only now
            for pid in self._processes().values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            if self._all_gone.wait(1.0):
                return

    def _ask(self) -> None:
        for rank, pid in self._processes().items():
            if self._job.over(rank).exists():
                self.lingering.add(rank)
                continue
            with contextlib.suppress(ProcessLookupError):
                self.hung[rank] = "its process is stopped (SIGSTOP)" if _is_stopped(pid) else ""
                os.kill(pid, ASKED)
        time.sleep(_TO_ANSWER)

    def _processes(self) -> dict[int, int]:
        """Of the ranks that have come up, and are not known to be gone."""
        found = {}
        for rank in range(self._job.size):
            path = self._job.process(rank)
            text = path.read_text() if path.exists() else ""
            if text and Path(f"/proc/{text}").exists() | (not Path("/proc").exists()):
                found[rank] = int(text)
        return found


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
