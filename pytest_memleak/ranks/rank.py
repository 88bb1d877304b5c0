"""The process of one rank: a pytest of its own that runs one test. ``python -m pytest_memleak.ranks.rank FOLDER``

Nothing is imported here that need not be before the test's own modules are.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
import time
from typing import TextIO

from pytest_memleak.ranks.job import ASKED, Job

GRACE = 5.0
"""How long ranks may go on when another one has failed, in seconds: they may well wait for it."""

_PR_SET_PDEATHSIG = 1


def main(folder: str) -> int:
    job = Job.load(folder)
    _die_with(job.parent)
    rank = int(os.environ["RANK"])
    job.process(rank).write_text(str(os.getpid()))
    _set_environment(job, rank)
    _watch(job.stacks(rank).open("w", encoding="utf-8"))
    from pytest_memleak.ranks.inside import run

    stopped_early, status = run(job, rank)
    job.over(rank).touch()
    if stopped_early:
        # The others may wait for it, and would for ever: the failure of one process ends those of all.
        _wait_for_others(job)
        return 1
    return 0 if status == 1 else status  # a test that failed is a result, and no failure of its process


def _die_with(parent: int) -> None:
    """Ranks go with the process that has started them, whatever becomes of that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # it died in the meantime


def _set_environment(job: Job, rank: int) -> None:
    world = job.world(rank)
    sys.path[:] = job.sys_path
    os.chdir(job.where)
    if job.nodes > 1:
        os.environ["LOCAL_RANK"] = str(world.local_rank)
        os.environ["LOCAL_WORLD_SIZE"] = str(world.local_size)
        os.environ["GROUP_RANK"] = str(rank // world.local_size)
        os.environ["GROUP_WORLD_SIZE"] = str(job.nodes)
    if job.cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(job.cards_of(world))
    # Each rank with a pool of threads for all cores would take longer than with its share of them.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // job.size, 1)))


def _watch(stacks: TextIO) -> None:
    """What it was doing when it was asked or stopped: written without the interpreter, which may be held."""
    faulthandler.register(ASKED, file=stacks, all_threads=True)
    faulthandler.register(signal.SIGTERM, file=stacks, all_threads=True, chain=True)


def _wait_for_others(job: Job) -> None:
    until = time.monotonic() + GRACE
    while time.monotonic() < until and not all(job.over(rank).exists() for rank in range(job.size)):
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
