"""What the simulated card knows of torch's inside: every private name that its Python half asks for or answers.

torch's own Python functions stay as they are. What they ask `torch._C` for, which a torch without CUDA does not have,
is answered here, each question by the name that torch has for it. Nothing outside this room imports it: real cards go
on working when it breaks. The native half is built against torch's C++ headers. Checked on torch 2.6, 2.11, 2.13 and
2.14; trial.py finds out about others.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._meta_registrations  # what sizes results have: torch registers it late
import torch._utils
import torch._VF
import torch.jit._builtins
import torch.utils._device
from torch.utils._pytree import tree_leaves

from pytest_memleak.cards.simulated.profiles import MOST_CARDS

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation

Function = Callable[..., Any]
Answer = tuple[Any, str, Any]
"""Whose attribute, its name, and what it is while the card is there."""

CUDA = 1
"""What torch calls the type of this device where it wants a number."""

# None of these has types.
_buffers: Any = torch._utils
_builtins: Any = torch.jit._builtins


# --- what torch asks of a card


def answers(
    simulation: Simulation, runtime: object, marks: object, exchange: Mapping[str, Function]
) -> Iterator[Answer]:
    """`exchange`: what cards send each other, by torch's name without the underscore in front."""
    cuda = torch.cuda
    for name, value in _of_cuda(simulation).items():
        yield torch._C, f"_cuda_{name}", value
    for name, value in _of_accelerator(simulation).items():
        if hasattr(torch._C, f"_accelerator_{name}"):
            yield torch._C, f"_accelerator_{name}", value
    for name, value in exchange.items():
        yield torch._C, f"_{name}", value
    yield cuda, "_initialized", True
    yield cuda, "_lazy_init", simulation.refuse_in_bad_fork
    yield cuda, "_is_in_bad_fork", simulation.is_in_bad_fork  # taken from torch._C when torch was imported
    # torch counts once, and writes it down itself.
    yield cuda, "_cached_device_count", len(simulation.cards)
    # The driver's own library is not to be asked.
    yield cuda, "_device_count_nvml", lambda: -1
    yield cuda, "_get_device_properties", simulation.properties
    yield cuda, "_cudart", runtime
    yield cuda.nvtx, "_nvtx", marks
    # Taken from torch._C when these modules were imported.
    yield cuda.graphs, "_cuda_isCurrentStreamCapturing", lambda: False
    yield cuda, "_exchange_device", _of_cuda(simulation)["exchangeDevice"]
    yield cuda, "_maybe_exchange_device", _of_cuda(simulation)["maybeExchangeDevice"]


def _of_cuda(simulation: Simulation) -> dict[str, Function]:
    def nothing(*args: Any) -> None:
        """Everything is done when it returns."""

    return {
        "init": nothing,
        "getDeviceCount": lambda: len(simulation.cards),
        "getDevice": simulation.current,
        "setDevice": simulation.set_current,
        "exchangeDevice": simulation.exchange,
        "maybeExchangeDevice": lambda device: simulation.current() if device < 0 else simulation.exchange(device),
        "isInBadFork": simulation.is_in_bad_fork,
        "getCompiledVersion": lambda: 12080,
        "getDriverVersion": lambda: 12080,
        "getArchFlags": lambda: "sm_80 sm_86 sm_89 sm_90",
        "synchronize": nothing,
        "ipc_collect": nothing,
        "getCurrentStream": lambda device: (simulation.stream(device), device, CUDA),
        "getDefaultStream": lambda device: (0, device, CUDA),
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


def _of_accelerator(simulation: Simulation) -> dict[str, Function]:
    return {
        "emptyCache": simulation.empty_cache,
        "isAllocatorInitialized": lambda: True,
        "getDeviceStats": lambda device: simulation.allocator(device).memory_stats_as_nested_dict(),
        "resetPeakStats": simulation.reset_peak,
        "resetAccumulatedStats": simulation.reset_accumulated,
        "getMemoryInfo": simulation.memory_info,
    }


# --- what a card has and the simulated one does not: owners and names, to be refused

ALLOCATOR_S_HISTORY = tuple(
    (torch._C, f"_cuda_{name}") for name in ("record_memory_history", "record_memory_history_legacy", "memorySnapshot")
)
OTHER_ALLOCATORS = tuple(
    (torch._C, f"_cuda_{name}")
    for name in ("cudaCachingAllocator_raw_alloc", "changeCurrentAllocator", "customAllocator")
)
JITERATOR = ((torch._C, "_cuda_jiterator_compile_and_launch_kernel"),)
NCCL = tuple(
    (torch._C, f"_nccl_{name}") for name in ("all_gather", "broadcast", "init_rank", "reduce_scatter", "unique_id")
)
GRAPH_POOLS = ((torch.cuda.graphs, "_graph_pool_handle"),)
SHARING = ((torch.UntypedStorage, "_share_cuda_"),)
NCCL_IS_THERE = ("torch.distributed.distributed_c10d", "_NCCL_AVAILABLE")
"""A module, which may not be imported yet, and what it says of NCCL."""
RECURRENT = tuple(
    (torch._VF, name)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)
"""Where torch's modules for them go."""
INDUCTOR = (torch._TorchCompileInductorWrapper, "__call__")
"""What hands a graph to torch.compile's default compiler."""

tensors_in = tree_leaves
"""All that is in nested lists, tuples and dictionaries."""


# --- forked children

_SET_ASKS_AGAIN = "_ZN5torch5utils24set_requires_device_initEN3c1010DeviceTypeEb"
"""set_requires_device_init(DeviceType, bool), which is not for Python."""


def ask_again_in_children() -> Function | None:
    """torch asks once in a process whether a device is ready: what makes it ask again, or None if it is not found."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_python.so"
    try:
        found = getattr(ctypes.CDLL(str(path)), _SET_ASKS_AGAIN)
    except (OSError, AttributeError):
        return None  # what takes memory is refused by the card itself
    found.restype, found.argtypes = None, [ctypes.c_int8, ctypes.c_bool]
    return lambda: found(CUDA, True)


# --- generators


def default_generators(count: int) -> tuple[torch.Generator, ...]:
    """Of that many cards; those of the native half, which are there once the cards are on."""
    return tuple(torch.ops.memleak_card.default_generator(index) for index in range(count))


@contextlib.contextmanager
def generators_set_aside() -> Iterator[None]:
    """Until the end those of all cards are as new; then they are as before."""
    all_of_them = default_generators(MOST_CARDS)
    before = [generator.get_state() for generator in all_of_them]
    for generator in all_of_them:
        generator.manual_seed(torch.initial_seed())
    try:
        yield
    finally:
        for generator, state in zip(all_of_them, before, strict=True):
            generator.set_state(state)


# --- operations


def operations() -> frozenset[str]:
    """All that torch knows by now, as namespace::name.overload."""
    return frozenset(torch._C._dispatch_get_all_op_names())


def has_kernel_for_cuda(name: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")


def kernels_for_cuda(namespace: str, kernels: Mapping[str, Function]) -> contextlib.AbstractContextManager[None]:
    """Until the end these are the kernels of the namespace's operations, by name.overload."""

    @contextlib.contextmanager
    def registered() -> Iterator[None]:
        with torch.library._scoped_library(namespace, "IMPL") as library:
            for name, kernel in kernels.items():
                library.impl(name, kernel, "CUDA")
            yield

    return registered()


def writes_to(operation: Any) -> list[bool]:
    """Of each of an operation's arguments whether it is written to."""
    aliases = [argument.alias_info for argument in operation._schema.arguments]
    return [alias is not None and bool(alias.is_write) for alias in aliases]


# --- functions that torch knows by identity


def keep_constructors() -> None:
    """torch keeps the functions that it finds at the first call, to know them again: let them be its own."""
    torch.utils._device._device_constructors()


def known_to_scripts(found: Function, instead: Function) -> Function:
    """TorchScript takes `instead` for what it takes `found` for."""
    operation = _builtins._find_builtin(found)
    if operation is not None:
        _builtins._register_builtin(instead, operation)
    return instead


# --- storages, and tensors sent as one


def handle(storage: Any) -> int:
    """The address that C++ knows a storage by."""
    return int(storage._cdata)


def chunks(tensors: Iterable[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
    """Those of one type together, until they have that many bytes."""
    return list(_buffers._take_tensors(tensors, size))


def joined(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = _buffers._flatten_dense_tensors(tensors)
    return found


def parted(whole: torch.Tensor, like: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    """Views of what `joined` made."""
    found: Iterable[torch.Tensor] = _buffers._unflatten_dense_tensors(whole, like)
    return found
