"""Threads that were there before a window: what they do in it passes by whatever is set thread by thread."""

from __future__ import annotations

import threading
from concurrent.futures import thread as pools

# What a thread uses that only fetches a message or looks at a clock stays below.
_WORK_NS = 1_000_000


class OlderThreads:
    """Those alive when it is made, without the caller and the pools' own: what a pool is given can be followed."""

    def __init__(self) -> None:
        self._before: dict[threading.Thread, int | None] = {
            thread: _time_of(thread)
            for thread in threading.enumerate()
            if thread is not threading.current_thread()
            and not thread.name.startswith("memleak-")
            and getattr(thread, "_target", None) is not getattr(pools, "_worker", None)
        }

    def worked(self) -> str | None:
        """Which of them used the processor since, in words; what ended or waited cannot be told here."""
        names = [
            thread.name
            for thread, before in self._before.items()
            if before is not None and (now := _time_of(thread)) is not None and now - before > _WORK_NS
        ]
        if not names:
            return None
        return (
            f"{', '.join(names)}: older than the test and at work during it; the dispatch tracker does not see what "
            "such a thread allocates; start it in the test, use a ThreadPoolExecutor, or install a C++ compiler, and "
            "the exact engine sees them"
        )


def _time_of(thread: threading.Thread) -> int | None:
    """Processor time in nanoseconds; None if it ended, or where the kernel does not count."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/schedstat", encoding="ascii") as schedstat:
            return int(schedstat.read().split()[0])
    except (OSError, ValueError, IndexError):
        return None
