"""What of a card cannot be simulated, by name: whoever uses it is refused, and the run is inconclusive.

Also where the program catches the refusal and goes another way: a card would have gone the first one. Triton's names
were checked on 3.9.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from pytest_memleak.cards.simulated import torch_inside
from pytest_memleak.upstream.imports import AfterImport
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation

COMPILED = "torch.compile for CUDA (inductor) is not simulated"
TRITON = "Triton's kernels are not simulated"
FLASH = "FlashAttention's kernels are not simulated"
LIGER = "Liger's kernels are not simulated"
NCCL = "NCCL is not simulated"
GRAPHS = "CUDA graphs are not simulated"
POOLS = "memory pools (torch.cuda.MemPool) are not simulated"
HISTORY = "the allocator's history and snapshots are not simulated"
ALLOCATORS = "allocations past torch's tensors, and other allocators, are not simulated"
RECORDED = "memory that another stream uses (record_stream) is not simulated"
JITERATOR = "jiterator's kernels are not simulated"
RECURRENT = "recurrent networks of cuDNN (LSTM, GRU, RNN, and their cells) are not simulated"
SHARED = "sharing a card's memory with other processes is not simulated"

# Most are not there without CUDA, and where they are they would look for a driver.
_NAMES: dict[str, tuple[tuple[Any, str], ...]] = {
    HISTORY: torch_inside.ALLOCATOR_S_HISTORY,
    ALLOCATORS: torch_inside.OTHER_ALLOCATORS,
    JITERATOR: torch_inside.JITERATOR,
    NCCL: torch_inside.NCCL,
    GRAPHS: ((torch.cuda.graphs.CUDAGraph, "__new__"), *torch_inside.GRAPH_POOLS),
    POOLS: ((torch.cuda.MemPool, "__new__"),),
    SHARED: torch_inside.SHARING,
}
_DISTRIBUTED, _NCCL_IS_THERE = torch_inside.NCCL_IS_THERE
_FLASH_MODULES = ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn_interface", "flash_attn.cute")

# What torch says where a card would have gone on, and what libraries say for want of a package that is for cards.
_WORDS = re.compile(
    r"Tried to instantiate dummy base class|not compiled with CUDA|compiled without CUDA|CUDA is not available|"
    r"without ATen_cuda library|missing kernel for cuda|module 'torch\._C' has no attribute '_(cuda|nccl|cudnn)|"
    r"No CUDA GPUs are available|no CUDA-capable device|Found no NVIDIA driver|CUDA driver version is insufficient|"
    r"libcuda\.so|arguments from the '\w+CUDA' backend|CPU-only version of bitsandbytes|"
    r"Native code method attempted to call"
)
_PACKAGES = {r"flash.?att": FLASH, r"\btriton\b": TRITON, r"\bliger": LIGER}


def reason_of(error: BaseException) -> str | None:
    """Why a program ended with an error that a card would not have raised, or None."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, ImportError):
            for name, sentence in _PACKAGES.items():
                if re.search(name, str(found), re.IGNORECASE):
                    return f"{sentence}, and its package is not installed: run it on a real card"
        if _WORDS.search(str(found)):
            return "what is installed here has no CUDA, and the program needs it: run it on a real card"
        found = found.__cause__ or found.__context__
    return None


@contextlib.contextmanager
def refused(simulation: Simulation) -> Iterator[None]:
    """Until the end what cannot be simulated is refused."""
    refusals = _Refusals(simulation)
    with contextlib.ExitStack() as undo:
        for patch in refusals.of_torch():
            undo.enter_context(patch)
        later = {
            _DISTRIBUTED: refusals.of_distributed,
            "triton.runtime.jit": refusals.of_triton,
            "triton.runtime.driver": refusals.of_triton_s_driver,
        }
        undo.enter_context(AfterImport(later | dict.fromkeys(_FLASH_MODULES, refusals.of_flash)))
        yield


class _Refusals:
    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._unknowns = simulation.unknowns

    def of_torch(self) -> Iterator[Patch]:
        for sentence, names in _NAMES.items():
            for owner, name in names:
                yield self._always(owner, name, sentence)
        for owner, name in torch_inside.RECURRENT:
            yield Patch(owner, name, self._recurrent)
        yield Patch(torch.nn.RNNBase, "flatten_parameters", self._flattened)
        yield Patch(*torch_inside.INDUCTOR, self._compiler)
        yield Patch(torch.Tensor, "record_stream", self._recorder, own=True)

    def of_distributed(self, module: ModuleType) -> list[Patch]:
        # Whoever asks hears what a card's torch says, and is refused where NCCL is used.
        return [
            Patch(module, _NCCL_IS_THERE, lambda found: True),
            Patch(module, "ProcessGroupNCCL", lambda found: self._class(NCCL), own=True),
        ]

    def of_triton(self, module: ModuleType) -> list[Patch]:
        launch = self._function(TRITON)
        return [Patch(module.KernelInterface, "__getitem__", lambda found: lambda kernel, grid: launch)]

    def of_triton_s_driver(self, module: ModuleType) -> list[Patch]:
        """Releases before 3.3 ask it for a stopwatch where a kernel is defined, and it asks for the card's library."""
        if "active" not in vars(module.driver):
            return []
        return [Patch(module.driver, "active", lambda found: _Driver(self._function(TRITON)))]

    def of_flash(self, module: ModuleType) -> list[Patch]:
        names = [name for name, value in vars(module).items() if name.startswith("flash_attn_") and callable(value)]
        return [Patch(module, name, self._attention) for name in names]

    def _recorder(self, found: object) -> Callable[..., None]:
        def record_stream(tensor: torch.Tensor, stream: torch.Stream) -> None:
            """The program goes on: a card would keep the memory for as long as the other stream takes."""
            if self._simulation.stream_of(tensor) not in (stream.stream_id, None):
                self._unknowns.refuse(RECORDED)

        return record_stream

    def _always(self, owner: Any, name: str, sentence: str) -> Patch:
        refusal = self._function(sentence)
        return Patch(owner, name, lambda found: refusal, own=True)

    def _function(self, sentence: str) -> Callable[..., Any]:
        def refusal(*args: Any, **kwargs: Any) -> Any:
            raise self._unknowns.refuse(sentence)

        return refusal

    def _class(self, sentence: str) -> type:
        """Others ask whether something is one of it: nothing is."""
        refusal = {"__init__": self._function(sentence)}
        return type("ProcessGroupNCCL", (), {**refusal, "Options": type("Options", (), refusal)})

    def _attention(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def attend(*args: Any, **kwargs: Any) -> Any:
            if _any_on_a_card([*args, *kwargs.values()]):
                raise self._unknowns.refuse(FLASH)
            return found(*args, **kwargs)

        return attend

    def _recurrent(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """What cuDNN takes for them while they run goes by the release, and by sizes in a way that is not known."""

        @functools.wraps(found)
        def run(*args: Any, **kwargs: Any) -> Any:
            if _any_on_a_card([*args, *kwargs.values()]):
                raise self._unknowns.refuse(RECURRENT)
            return found(*args, **kwargs)

        return torch_inside.known_to_scripts(found, run)

    def _flattened(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """Their weights become one block for cuDNN, as soon as they are on a card."""

        @functools.wraps(found)
        def flatten_parameters(module: torch.nn.RNNBase) -> Any:
            if _any_on_a_card(list(module.parameters())):
                raise self._unknowns.refuse(RECURRENT)
            return found(module)

        return flatten_parameters

    def _compiler(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def compiled(wrapper: Any, model: Any, inputs: Any, **kwargs: Any) -> Any:
            if _any_on_a_card([*inputs, *(node.meta.get("example_value") for node in model.graph.nodes)]):
                raise self._unknowns.refuse(COMPILED)
            return found(wrapper, model, inputs, **kwargs)

        return compiled


class _Driver:
    """Triton's, without a card to drive: a kernel may be defined with it, and not more."""

    def __init__(self, refusal: Callable[..., Any]) -> None:
        self._refusal = refusal

    def get_benchmarker(self) -> Callable[..., Any]:
        return self._refusal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self._refusal


def _any_on_a_card(values: list[Any]) -> bool:
    return any(isinstance(value, torch.Tensor) and value.is_cuda for value in torch_inside.tensors_in(values))
