"""The fallback sees the tensors of every Python thread, and says when it missed some."""

from __future__ import annotations

import _thread
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pytest_memleak.events import garbage
from pytest_memleak.events.dispatch import DispatchTracker
from pytest_memleak.events.storages import unique_cpu_storages


@pytest.fixture
def tracker() -> Iterator[DispatchTracker]:
    garbage.thaw()
    garbage.collect_unless_off()  # classes made in tests are cycles, and hold what their methods saw
    one = DispatchTracker()
    one.begin()
    yield one
    one.end()


def test_level_peak_and_release(tracker: DispatchTracker) -> None:
    before = tracker.current()
    tracker.reset_peak()
    kept = torch.ones(1000)
    torch.ones(500)
    assert tracker.current() - before == 4000
    assert tracker.take_peak() - before == 6000
    view = kept[3:]
    del kept
    assert tracker.current() - before == 4000
    del view
    assert tracker.current() == before


def test_what_lived_before_is_adopted_with_its_gradients() -> None:
    garbage.settle()
    linear = torch.nn.Linear(10, 10)
    linear(torch.ones(1, 10)).sum().backward()
    tracker = DispatchTracker()
    tracker.begin()
    try:
        assert tracker.current() == 2 * 440
        linear.zero_grad(set_to_none=True)
        assert tracker.current() == 440
        del linear
        assert tracker.current() == 0
    finally:
        tracker.end()
        garbage.thaw()


def test_live_since_lists_only_what_came_after_and_is_alive(tracker: DispatchTracker) -> None:
    older = torch.ones(10)
    mark = tracker.sequence()
    leaked, dropped = torch.ones(100), torch.ones(200)
    del dropped
    assert tracker.live_since(mark) == [(leaked.data_ptr(), 400)]
    assert (older.data_ptr(), 40) in tracker.live_since(0)


def test_threads_that_start_in_the_window_are_seen(tracker: DispatchTracker) -> None:
    before = tracker.current()
    kept: list[torch.Tensor] = []

    class Own(threading.Thread):
        def run(self) -> None:
            kept.append(torch.ones(100))

    for thread in (threading.Thread(target=lambda: kept.append(torch.ones(100))), Own()):
        thread.start()
        thread.join()
    with ThreadPoolExecutor(2) as pool:
        kept.extend(pool.map(torch.ones, [100, 100]))
    assert tracker.current() - before == 1600


def test_a_pool_that_is_older_than_the_window_is_seen() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        tracker = DispatchTracker()
        tracker.begin()
        try:
            before = tracker.current()
            kept = pool.submit(torch.ones, 100).result()
            assert tracker.current() - before == 400
        finally:
            tracker.end()
    del kept


def test_a_thread_it_could_not_enter_makes_it_blind(tracker: DispatchTracker) -> None:
    kept: list[torch.Tensor] = []
    done = threading.Event()

    def make() -> None:
        kept.append(torch.ones(100))
        done.set()

    _thread.start_new_thread(make, ())
    assert done.wait(20)
    missed = [storage for storage in unique_cpu_storages(kept) if not tracker.knows(storage)]
    assert len(missed) == 1
    assert "400 B of CPU tensors" in (tracker.blindness(missed) or "")
    assert tracker.blindness([]) is None


def test_foreign_memory_is_not_counted_when_operations_return_it(tracker: DispatchTracker) -> None:
    before = tracker.current()
    foreign = torch.frombuffer(bytearray(400), dtype=torch.uint8)
    view = foreign.view(torch.float32)
    assert tracker.current() == before
    del view


def test_after_the_window_nothing_is_wrapped_and_nothing_counted() -> None:
    original = vars(threading.Thread)["_bootstrap_inner"]
    tracker = DispatchTracker()
    tracker.begin()
    tracker.end()
    assert vars(threading.Thread)["_bootstrap_inner"] is original
    before = tracker.current()
    kept = torch.ones(100)
    assert tracker.current() == before
    del kept


def test_modules_can_be_moved_with_swapped_tensors(tracker: DispatchTracker) -> None:
    before = tracker.current()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        linear = torch.nn.Linear(10, 10)
        linear.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert linear.weight.dtype is torch.float64
    assert tracker.current() - before == 880


def test_fake_tensors_have_no_memory(tracker: DispatchTracker) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = tracker.current()
    with FakeTensorMode():
        fake = torch.ones(1000) + 1
    assert tracker.current() == before
    del fake


def test_storages_that_no_operation_made_are_counted(tracker: DispatchTracker) -> None:
    tracker.take_peak()
    before = tracker.current()
    storage = torch.UntypedStorage(1000)
    assert tracker.current() - before == 1000
    storage.resize_(4000)
    assert tracker.current() - before == 4000
    del storage
    assert tracker.current() == before
    assert tracker.take_peak() - before == 4000


def test_an_older_thread_that_works_makes_it_blind_and_one_that_waits_does_not(tracker: DispatchTracker) -> None:
    tasks: queue.Queue[int] = queue.Queue()

    def serve() -> None:
        while size := tasks.get():
            torch.ones(size).sum()
            tasks.task_done()

    server = threading.Thread(target=serve, name="older")
    tracker.end()
    server.start()
    tracker.begin()
    assert tracker.blindness([]) is None
    tasks.put(10_000_000)
    tasks.join()
    assert "older: older than the test and at work during it" in str(tracker.blindness([]))
    tasks.put(0)
    server.join()
