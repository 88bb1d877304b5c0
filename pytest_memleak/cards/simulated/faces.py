"""What programs see of the simulated card: `torch.cuda` and `torch.accelerator` answer as for a card that is there.

torch's own Python functions stay as they are; what they ask torch._C for, which a torch without CUDA does not have, is
answered here. This is all of torch's private API on Python's side, but for storages.py and a few names in choices.py
and readings.py. Checked on torch 2.6, 2.11 and 2.13.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from pytest_memleak.cards.simulated import exchange
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation


_CUDA = 1
"""What torch calls the type of this device where it wants a number."""


@contextlib.contextmanager
def shown(simulation: Simulation) -> Iterator[None]:
    """Until the end the card is there for whoever asks."""
    with contextlib.ExitStack() as undo:
        for owner, name, value in _answers(simulation):
            undo.enter_context(Patch(owner, name, _always(value), own=True))
        # torch counts once, and writes it down itself.
        undo.callback(setattr, torch.cuda, "_cached_device_count", torch.cuda._cached_device_count)
        torch.cuda._cached_device_count = None
        yield


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda found: value


def _answers(simulation: Simulation) -> Iterator[tuple[Any, str, Any]]:
    for name, value in _of_cuda(simulation).items():
        yield torch._C, f"_cuda_{name}", value
    for name, value in exchange.ANSWERS.items():
        yield torch._C, name, value
    for name, value in _of_accelerator(simulation).items():
        if hasattr(torch._C, f"_accelerator_{name}"):
            yield torch._C, f"_accelerator_{name}", value
    cuda = torch.cuda
    yield cuda, "_initialized", True
    # The driver's own library is not to be asked.
    yield cuda, "_device_count_nvml", lambda: -1
    # Taken by name when torch.cuda was imported.
    yield cuda.graphs, "_cuda_isCurrentStreamCapturing", lambda: False
    yield cuda, "_lazy_init", lambda: None
    yield cuda, "_get_device_properties", simulation.properties
    yield cuda, "_cudart", _runtime(simulation)
    yield cuda, "default_generators", simulation.generators
    # Taken from torch._C when torch.cuda is imported, if they are there by then.
    yield cuda, "_exchange_device", _of_cuda(simulation)["exchangeDevice"]
    yield cuda, "_maybe_exchange_device", _of_cuda(simulation)["maybeExchangeDevice"]
    for module in (cuda, cuda.streams):
        yield module, "Stream", Stream
        yield module, "ExternalStream", ExternalStream
        yield module, "Event", Event
    yield cuda.nvtx, "_nvtx", Marks()
    yield torch.version, "cuda", simulation.cuda_version


def _of_cuda(simulation: Simulation) -> dict[str, Callable[..., Any]]:
    def nothing(*args: Any) -> None:
        """Everything is done when it returns."""

    return {
        "init": nothing,
        "getDeviceCount": lambda: len(simulation.cards),
        "getDevice": simulation.current,
        "setDevice": simulation.set_current,
        "exchangeDevice": simulation.exchange,
        "maybeExchangeDevice": lambda device: simulation.current() if device < 0 else simulation.exchange(device),
        "isInBadFork": lambda: False,
        "getCompiledVersion": lambda: 12080,
        "getDriverVersion": lambda: 12080,
        "getArchFlags": lambda: "sm_80 sm_86 sm_89 sm_90",
        "synchronize": nothing,
        "ipc_collect": nothing,
        "getCurrentStream": lambda device: (simulation.stream(device), device, _CUDA),
        "getDefaultStream": lambda device: (0, device, _CUDA),
        "setStream": lambda stream_id, device_index, device_type: simulation.set_stream(stream_id, device_index),
        "getCurrentRawStream": simulation.stream,
        "isCurrentStreamCapturing": lambda: False,
        "canDeviceAccessPeer": lambda device, peer: device != peer,
        "getAllocatorBackend": lambda: "native",
        "hasPrimaryContext": lambda device: True,
        "memoryStats": lambda device: simulation.allocator(device).memory_stats_as_nested_dict(),
        "resetPeakMemoryStats": simulation.reset_peak,
        "resetAccumulatedMemoryStats": simulation.reset_accumulated,
        "emptyCache": simulation.empty_cache,
        "setMemoryFraction": simulation.set_fraction,
        "getMemoryFraction": simulation.fraction,
        "clearCublasWorkspaces": simulation.release_workspaces,
        "cudaHostAllocator": lambda: 0,
    }


def _of_accelerator(simulation: Simulation) -> dict[str, Callable[..., Any]]:
    return {
        "emptyCache": simulation.empty_cache,
        "isAllocatorInitialized": lambda: True,
        "getDeviceStats": lambda device: simulation.allocator(device).memory_stats_as_nested_dict(),
        "resetPeakStats": simulation.reset_peak,
        "resetAccumulatedStats": simulation.reset_accumulated,
        "getMemoryInfo": simulation.memory_info,
    }


def _runtime(simulation: Simulation) -> SimpleNamespace:
    def done(*args: Any) -> int:
        return 0

    return SimpleNamespace(
        cudaMemGetInfo=simulation.memory_info,
        cudaHostRegister=done,
        cudaHostUnregister=done,
        cudaDeviceSynchronize=done,
        cudaError=SimpleNamespace(success=0),
        cudaGetErrorString=lambda code: f"error {code}",
    )


class Stream(torch.Stream):
    """Work on the simulated card is done at once, in the order of the program."""

    def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> Any:
        if "stream_id" in kwargs:
            return super().__new__(cls, **kwargs)
        return super().__new__(cls, device=torch.device("cuda", _index(device)), priority=priority)

    def __init__(self, device: Any = None, priority: int = 0, **kwargs: Any) -> None:
        self.cuda_stream = self.stream_id
        self.priority = priority

    def wait_event(self, event: object) -> None:
        """Everything is done."""

    def wait_stream(self, stream: object) -> None:
        """Everything is done."""

    def record_event(self, event: Any = None) -> Any:
        return event or Event()


class ExternalStream(Stream):
    """One that somebody else made: a stream like any other."""

    def __new__(cls, stream_ptr: int, device: Any = None, **kwargs: Any) -> Any:
        return super().__new__(cls, stream_id=stream_ptr, device_index=_index(device), device_type=_CUDA)

    def __init__(self, stream_ptr: int, device: Any = None, **kwargs: Any) -> None:
        super().__init__()


class Event:
    """A point in a stream. No time passes on the simulated card."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())

    def record(self, stream: object = None) -> None:
        """Everything before it is done."""

    def wait(self, stream: object = None) -> None:
        """Everything before it is done."""

    def synchronize(self) -> None:
        """Everything before it is done."""

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: object) -> float:
        return 0.0


class Marks:
    """Marks for a profiler that nobody started."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *args: 0


def _index(device: Any) -> int:
    if isinstance(device, int):
        return device
    index = torch.device(device).index if device is not None else None
    return torch.cuda.current_device() if index is None else index
