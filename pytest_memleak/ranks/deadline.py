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
        self._job = job
        self._timer = threading.Timer(job.timeout, self._time_is_up)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._timer.join()

    def _time_is_up(self) -> None:
        processes = {rank: pid for rank in range(self._job.size) if (pid := self._process(rank)) is not None}
        for rank, pid in processes.items():
            with contextlib.suppress(ProcessLookupError):
                self.hung[rank] = "its process is stopped (SIGSTOP)" if _is_stopped(pid) else ""
                os.kill(pid, ASKED)
        time.sleep(_TO_ANSWER)
        for pid in processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _process(self, rank: int) -> int | None:
        """None if it has not come up, or has nothing more to say."""
        path = self._job.process(rank)
        if self._job.over(rank).exists() or not path.exists():
            return None
        return int(path.read_text() or 0) or None


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] in ("T", "t")
    except OSError:
        return False
