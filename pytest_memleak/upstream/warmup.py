"""transformers' warm-up of the caching allocator, one large request before a load: whether it was made, and what for.

`caching_allocator_warmup` has been there since 4.50, and its parameters have changed twice; its only caller is a load
with a device map. From 5.2 on it asks for the card's total less 1.2 GiB at most, whatever is free. Read in 4.50.0,
4.56.2, 5.1.0, 5.2.0 and 5.23.0.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_memleak.room import Room
from pytest_memleak.upstream.imports import AfterImport
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.upstream.targets import accelerators_of
from pytest_memleak.upstream.where import caller, shown

MODULE = "transformers.modeling_utils"
WARM_UP = "caching_allocator_warmup"
LESS_THAN_NOTHING = (
    "transformers' caching_allocator_warmup asks for the card's size less 1.2 GiB at most, and on a card of {} that is "
    "less than nothing"
)

RoomOf = Callable[[torch.device], Room | None]
Around = Callable[[], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True)
class Ask:
    """One request of a warm-up."""

    device: str
    bytes: int
    """Less than zero where a card smaller than what is left free of it was asked for the rest."""
    room: Room | None
    """What there was at that moment; None where the device does not tell."""
    failed: str = ""
    """The first line of the error that it was answered with."""

    @property
    def fits(self) -> bool | None:
        """Whether it can be had; None where that is not known."""
        if self.failed or self.bytes < 0:
            return False
        return None if self.room is None else self.bytes <= self.room.bytes


@dataclass
class Warmup:
    """One call of the warm-up."""

    rooms: dict[str, Room | None]
    """The accelerators of the device map that it was given, and what there was of each when it began."""
    signature: str
    asks: list[Ask] = field(default_factory=list)


@dataclass
class Load:
    """One call of from_pretrained, the outermost."""

    place: str
    reached: bool = False
    """Its weights were read: no warm-up follows. One that died before may have died before its warm-up."""
    warmups: list[Warmup] = field(default_factory=list)


class WarmupSpy:
    """While entered: every load and its warm-ups. transformers may be imported in the middle of it."""

    def __init__(self, room_of: RoomOf, around: Around = contextlib.nullcontext) -> None:
        """`around`: entered while a warm-up runs."""
        self.loads: list[Load] = []
        self.elsewhere = 0
        """Loads in pauses: a wider fixture's."""
        self.missing = ""
        """Why there is nothing to be seen, where transformers has no warm-up."""
        self._room_of = room_of
        self._around = around
        self._paused = False
        self._over = False
        self._thread = threading.local()
        self._watching = AfterImport({MODULE: self._patches})

    def __enter__(self) -> WarmupSpy:
        self._watching.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self._watching.__exit__(kind, error, trace)

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False

    @property
    def warmups(self) -> list[Warmup]:
        return [warmup for load in self.loads for warmup in load.warmups]

    @property
    def asks(self) -> list[Ask]:
        return [ask for warmup in self.warmups for ask in warmup.asks]

    def _patches(self, module: ModuleType) -> Iterator[Patch]:
        base = getattr(module, "PreTrainedModel", None)
        if base is None:  # a stand-in for transformers
            self.missing = f"{MODULE} has no PreTrainedModel"
            return
        yield Patch(base, "from_pretrained", self._from_pretrained)
        if hasattr(base, "_load_pretrained_model"):
            yield Patch(base, "_load_pretrained_model", self._read_weights)
        if hasattr(module, WARM_UP):
            # A library that is imported now may patch it for good, and is not to lose that at the end of a test.
            yield Patch(module, WARM_UP, self._warm_up, yields=True)
        else:
            self.missing = f"this transformers has no {WARM_UP}"

    def _running(self) -> Load | None:
        return getattr(self._thread, "load", None)

    def _from_pretrained(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self._running() is not None:
                return found(*args, **kwargs)  # what a load loads on its way is a part of it
            with self._load() as load:
                result = found(*args, **kwargs)
                load.reached = True
                return result

        return from_pretrained

    @contextlib.contextmanager
    def _load(self) -> Iterator[Load]:
        load = self._thread.load = Load(shown(caller()))
        if self._paused:
            self.elsewhere += 1
        else:
            self.loads.append(load)
        try:
            yield load
        finally:
            self._thread.load = None

    def _read_weights(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            result = found(*args, **kwargs)
            if (load := self._running()) is not None:
                load.reached = True
            return result

        return _load_pretrained_model

    def _warm_up(self, found: Callable[..., Any]) -> Callable[..., Any]:
        names = ", ".join(inspect.signature(found).parameters)

        @functools.wraps(found)
        def caching_allocator_warmup(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if self._paused or self._over:
                return found(*args, **kwargs)
            devices = accelerators_of(device_map_of(args, kwargs))
            warmup = Warmup({str(device): self._room_of(device) for device in devices}, f"{WARM_UP}({names})")
            load = self._running()
            if load is None:  # somebody warms up without a load
                load = Load(shown(caller()), reached=True)
                self.loads.append(load)
            load.warmups.append(warmup)
            with self._around(), _Asks(self._room_of, warmup.asks):
                return found(*args, **kwargs)

        return caching_allocator_warmup


def device_map_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Of a call of the warm-up: the second parameter, whatever comes after it. Without one, an empty map."""
    if "expanded_device_map" in kwargs:
        return kwargs["expanded_device_map"]
    return args[1] if len(args) > 1 else {}


class _Asks(TorchDispatchMode):
    """Notes the memory of accelerators that is asked for, also what is refused."""

    def __init__(self, room_of: RoomOf, asks: list[Ask]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room_of = room_of
        self._asks = asks

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        __tracebackhide__ = True
        kwargs = kwargs or {}
        device, wanted = kwargs.get("device"), _bytes_of(args, kwargs)
        if wanted is None or not isinstance(device, torch.device) or not (on := accelerators_of(device)):
            return function(*args, **kwargs)
        room, failed = self._room_of(on[0]), ""
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            failed = next(iter(str(error).splitlines()), type(error).__name__)
            raise
        finally:
            self._asks.append(Ask(str(on[0]), wanted, room, failed))


def _bytes_of(args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """What a factory of tensors is asked for: its first argument is their shape."""
    shape = args[0] if args else kwargs.get("size")
    if not isinstance(shape, list | tuple) or not all(isinstance(size, int) for size in shape):
        return None
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    return math.prod(shape) * int(dtype.itemsize)


def asked_for_less_than_nothing(error: BaseException) -> bool:
    """Whether it failed because the card that it was told of is smaller than what it leaves free."""
    if not isinstance(error, RuntimeError) or "negative dimension" not in str(error):
        return False
    return any(frame.f_code.co_name == WARM_UP for frame, _ in traceback.walk_tb(error.__traceback__))
