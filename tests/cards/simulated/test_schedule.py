"""The order in which the threads of a known loader run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pytest_memleak.cards.simulated.schedule import Schedule

WAIT = 30.0
Submit = Callable[..., Future[Any]]


def submit_of(module: str) -> Submit:
    """A function that hands jobs to a pool, as one of that module."""
    names: dict[str, Any] = {"__name__": module}
    exec("def submit(pool, job, *args):\n    return pool.submit(job, *args)", names)
    found: Submit = names["submit"]
    return found


def test_jobs_of_the_loader_are_done_when_they_were_handed_over() -> None:
    load, done = submit_of("transformers.core_model_loading"), []

    def job(number: int) -> int:
        time.sleep(0.01 * (4 - number))  # the first takes longest
        done.append((number, threading.current_thread() is threading.main_thread()))
        return number

    schedule = Schedule()
    with schedule, ThreadPoolExecutor(4) as pool:
        for number in range(4):
            future = load(pool, job, number)
            assert future.done()
            assert future.result() == number
    assert done == [(number, False) for number in range(4)]
    assert schedule.jobs == 4
    assert "as far ahead as their pool lets it" in str(schedule.remark())
    schedule.reset()
    assert schedule.remark() is None


def test_an_error_is_the_one_who_asks() -> None:
    load = submit_of("transformers.core_model_loading")
    with Schedule(), ThreadPoolExecutor(1) as pool:
        future = load(pool, [].pop)
        assert isinstance(future.exception(), IndexError)


def test_other_pools_are_left_alone() -> None:
    go = threading.Event()
    schedule = Schedule()
    with schedule, ThreadPoolExecutor(1) as pool:
        future = submit_of("somebody.else")(pool, go.wait, WAIT)
        assert not future.done()  # it waits for this thread, and would for ever
        go.set()
        assert future.result()
    assert schedule.remark() is None


def test_it_ends() -> None:
    load, go = submit_of("transformers.core_model_loading"), threading.Event()
    with Schedule():
        pass
    with ThreadPoolExecutor(1) as pool:
        future = load(pool, go.wait, WAIT)
        go.set()
        assert future.result()
