"""What programs see of the simulated card: `torch.cuda` and `torch.accelerator` answer as for a card that is there.

What programs take from there is here; what torch asks for in its own name is answered in torch_inside.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from pytest_memleak.cards.simulated import exchange, torch_inside
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation


@contextlib.contextmanager
def shown(simulation: Simulation) -> Iterator[None]:
    """Until the end the card is there for whoever asks."""
    asked = torch_inside.answers(simulation, _runtime(simulation), Marks(), exchange.ANSWERS)
    with contextlib.ExitStack() as undo:
        for owner, name, value in (*asked, *_shown(simulation)):
            undo.enter_context(Patch(owner, name, _always(value), own=True))
        yield


def _always(value: Any) -> Callable[[Any], Any]:
    return lambda found: value


def _shown(simulation: Simulation) -> Iterator[torch_inside.Answer]:
    """What programs take from `torch.cuda` themselves."""
    yield torch.cuda, "default_generators", simulation.generators
    for module in (torch.cuda, torch.cuda.streams):
        yield module, "Stream", Stream
        yield module, "ExternalStream", ExternalStream
        yield module, "Event", Event
    yield torch.version, "cuda", simulation.cuda_version


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
        return super().__new__(cls, stream_id=stream_ptr, device_index=_index(device), device_type=torch_inside.CUDA)

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
