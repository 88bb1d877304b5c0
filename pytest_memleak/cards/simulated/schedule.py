"""Loaders with threads of their own, in one order that is the same in every run.

A loader that hands its tensors to a pool of threads races with them on a card: how much is there at a time depends on
the machine and on the day. No time passes on the simulated card, so an order has to be chosen: the workers are as far
ahead of the loader as their pool lets them, which is the most memory that the program may come to need.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from pytest_memleak.upstream.patches import Patch

# Their jobs are independent of what the thread that hands them out does next, so that it may wait for each.
_LOADERS = frozenset({"transformers.core_model_loading"})


class Schedule(Patch):
    """While entered, a job that a known loader hands to a pool is done when it has been handed over."""

    def __init__(self) -> None:
        super().__init__(ThreadPoolExecutor, "submit", self._ahead)
        self.jobs = 0
        """How many were done ahead."""

    def reset(self) -> None:
        self.jobs = 0

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Until the end nothing was loaded yet; then it is as before."""
        before, self.jobs = self.jobs, 0
        try:
            yield
        finally:
            self.jobs = before

    def remark(self) -> str | None:
        """What a reader of the numbers has to know, or None."""
        if not self.jobs:
            return None
        return (
            "a load by several threads ran as far ahead as their pool lets it, the most "
            "memory that it can need: on a card that is a race"
        )

    def _ahead(self, found: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        def submit(pool: ThreadPoolExecutor, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = found(pool, job, *args, **kwargs)
            # Whose function this is called by, and not whose job it is: a loader's functions may be used elsewhere.
            if sys._getframe(1).f_globals.get("__name__") in _LOADERS:
                self.jobs += 1
                wait([future])
            return future

        return submit
