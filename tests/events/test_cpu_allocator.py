"""The exact engine counts what torch's CPU allocator hands out, on every thread, and can refuse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from pytest_memleak.errors import Unavailable
from pytest_memleak.events.cpu_allocator import CpuAllocator

MIB = 1024**2


@pytest.fixture
def engine() -> Iterator[CpuAllocator]:
    try:
        loaded = CpuAllocator.load()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield loaded
    loaded.set_cap(None)


def test_counts_a_tensor_while_it_lives(engine: CpuAllocator) -> None:
    before = engine.current()
    tensor = torch.empty(1000)
    assert engine.current() - before == 4000
    view = tensor[1:]
    del tensor
    assert engine.current() - before == 4000
    del view
    assert engine.current() == before


def test_is_one_per_process(engine: CpuAllocator) -> None:
    assert CpuAllocator.load() is engine
    assert engine.in_place()


def test_peak_starts_anew_from_the_level(engine: CpuAllocator) -> None:
    kept = torch.empty(1000)
    engine.reset_peak()
    level = engine.current()
    torch.empty(5000)
    assert engine.peak() == level + 20_000
    assert engine.take_peak() == level + 20_000
    assert engine.peak() == engine.current() == level
    del kept


def test_sees_scratch_memory_of_kernels(engine: CpuAllocator) -> None:
    lstm, data = torch.nn.LSTM(64, 64), torch.randn(20, 16, 64)
    with torch.no_grad():
        lstm(data)  # what it caches, it caches now
        engine.reset_peak()
        before = engine.current()
        result = lstm(data)
    returned = engine.current() - before
    assert engine.peak() - before > returned > 0
    del result


def test_live_since_lists_only_what_came_after_and_is_alive(engine: CpuAllocator) -> None:
    older = torch.empty(10)
    mark = engine.sequence()
    leaked, dropped = torch.empty(100), torch.empty(200)
    del dropped
    assert engine.live_since(mark) == [(leaked.data_ptr(), 400)]
    assert (older.data_ptr(), 40) in engine.live_since(0)


def test_nothing_is_live_since_a_mark_taken_before_any_allocation() -> None:
    script = """
import torch
before = torch.ones(10)
from pytest_memleak.events.cpu_allocator import CpuAllocator
engine = CpuAllocator.load()
assert engine.current() == 40, engine.current()
assert engine.live_since(engine.sequence()) == []
assert engine.live_since(0) == [(before.data_ptr(), 40)]
"""
    _run(script)


def test_knows_its_own_blocks_only(engine: CpuAllocator) -> None:
    tensor, buffer = torch.empty(10), bytearray(100)
    foreign = torch.frombuffer(buffer, dtype=torch.uint8)
    assert engine.knows(tensor.untyped_storage())
    assert not engine.knows(foreign.untyped_storage())
    address = tensor.data_ptr()
    assert engine.knows_address(address)
    del tensor
    assert not engine.knows_address(address)


def test_what_lived_before_is_in_the_level_and_leaves_it() -> None:
    script = """
import torch
linear = torch.nn.Linear(100, 100)
linear(torch.ones(1, 100)).sum().backward()  # gradients that no Python object stands for yet
lone = torch.ones(1000)
from pytest_memleak.events.cpu_allocator import CpuAllocator
engine = CpuAllocator.load()
assert engine.current() == 2 * 40_400 + 4000, engine.current()
del lone
assert engine.current() == 2 * 40_400, engine.current()
linear.zero_grad(set_to_none=True)
assert engine.current() == 40_400, engine.current()
linear.weight.data.resize_(200, 100)  # grows by the allocator it was made with
assert engine.current() == 80_400, engine.current()
"""
    _run(script)


def test_a_cap_raises_torchs_own_error_and_is_lifted(engine: CpuAllocator) -> None:
    refused = engine.refusals()
    engine.set_cap(engine.current() + 10 * MIB)
    with pytest.raises(torch.OutOfMemoryError, match=r"CPU out of memory\. Tried to allocate 20\.00 MiB") as raised:
        torch.empty(20 * MIB, dtype=torch.uint8)
    assert "of which 10.00 MiB is free" in str(raised.value)
    assert torch.empty(10 * MIB, dtype=torch.uint8).numel() == 10 * MIB
    assert engine.refusals() == refused + 1
    engine.set_cap(None)
    assert torch.empty(20 * MIB, dtype=torch.uint8).numel() == 20 * MIB


def test_a_refused_allocation_is_neither_in_the_level_nor_in_the_peak(engine: CpuAllocator) -> None:
    engine.reset_peak()
    level = engine.current()
    engine.set_cap(level + MIB)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2 * MIB, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="can't allocate"):
        engine.set_cap(None)
        torch.empty(2**60, dtype=torch.uint8)
    # The messages of torch's errors may keep small tensors of their own.
    assert engine.current() == engine.peak() == level


def test_a_machine_out_of_memory_counts_as_refusal(engine: CpuAllocator) -> None:
    refused = engine.refusals()
    with pytest.raises(RuntimeError, match="can't allocate"):
        torch.empty(2**60, dtype=torch.uint8)
    assert engine.refusals() == refused + 1


def test_threads_together_never_pass_the_cap(engine: CpuAllocator) -> None:
    level = engine.current()
    engine.reset_peak()
    engine.set_cap(level + 10 * MIB)
    start = threading.Barrier(4)

    def fill() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        start.wait()
        while True:
            try:
                kept.append(torch.empty(16384, dtype=torch.uint8))
            except torch.OutOfMemoryError:
                return kept

    with ThreadPoolExecutor(4) as pool:
        kept = [job.result() for job in [pool.submit(fill) for _ in range(4)]]
    assert sum(map(len, kept)) == 640
    assert engine.peak() == engine.current() == level + 10 * MIB


def test_counts_right_when_many_threads_allocate_and_release(engine: CpuAllocator) -> None:
    level = engine.current()

    def churn(seed: int) -> None:
        kept = [torch.empty(seed + 1) for _ in range(50)]
        for turn in range(2000):
            kept[turn % 50] = torch.empty(turn % 97 + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(churn, range(4)))
    assert engine.current() == level


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_fork_amid_allocations_does_not_deadlock(engine: CpuAllocator) -> None:
    stop = threading.Event()

    def churn() -> None:
        kept = [torch.empty(10)] * 100
        while not stop.is_set():
            for slot in range(100):
                kept[slot] = torch.empty(slot + 1)

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(40):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)  # a deadlock ends by this signal
                # Enough of them to meet every lock there is.
                blocks = [torch.empty(size) for size in range(1, 600)]
                del blocks
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            assert status == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_dataloader_workers_run_under_it(engine: CpuAllocator) -> None:
    data: Any = torch.arange(64.0).reshape(16, 4)
    loader: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
        data, batch_size=4, num_workers=1, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat(list(loader)), data)


def _run(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if "Unavailable" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
