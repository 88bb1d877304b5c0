"""The gauges of this process, one of each: overlapping windows must share one, or each would reset the other's peak."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from pytest_memleak.events.cpu_allocator import CpuAllocator
from pytest_memleak.events.cpu_recording import CpuRecording
from pytest_memleak.events.recording import Recording
from pytest_memleak.meters.accelerator import AcceleratorMemory
from pytest_memleak.meters.driver import DriverMemory
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.meters.host import HostMemory
from pytest_memleak.meters.tensors import CpuTensors


@functools.cache
def accelerator(kind: str, index: int) -> SharedGauge:
    memory = AcceleratorMemory(kind, index)
    gauge = SharedGauge(memory)
    memory.fold = gauge.fold
    return gauge


@functools.cache
def cpu_memory() -> CpuTensors:
    return CpuTensors()


@functools.cache
def cpu_tensors() -> SharedGauge:
    return SharedGauge(cpu_memory())


def cpu_recordings() -> list[Recording]:
    """A new one; none where CPU tensors are tracked by dispatch, which does not see who allocates."""
    return [CpuRecording()] if isinstance(cpu_memory().engine, CpuAllocator) else []


@functools.cache
def host_memory() -> HostMemory:
    return HostMemory()


@functools.cache
def host() -> SharedGauge:
    return SharedGauge(host_memory())


@contextlib.contextmanager
def host_aside() -> Iterator[None]:
    """Our own work amid a test, such as a walk over all objects: what that takes is not held against the test."""
    if host.cache_info().currsize:
        with host().aside():
            yield
    else:
        yield  # nobody measures it


@functools.cache
def driver(index: int) -> SharedGauge:
    return SharedGauge(DriverMemory(index))
