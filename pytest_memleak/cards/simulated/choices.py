"""What a card would choose where torch has several ways: kernels of its own for attention and convolution, workspaces
for matrix products, and the operations of other libraries.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
import torch._meta_registrations
from torch.library import Library

from pytest_memleak.cards.simulated import scratch
from pytest_memleak.cards.simulated.attention import Attention
from pytest_memleak.cards.simulated.copies import Copies
from pytest_memleak.cards.simulated.kernels import Kernels
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.simulated.simulation import Simulation

# Operations that a card does in one kernel, and torch without CUDA puts together from others.
_OWN_KERNELS = (
    "convolution convolution_backward native_layer_norm native_group_norm silu_backward mish_backward addr addr.out "
    "_chunk_cat _chunk_cat.out all.dims all.dims_out any.dims any.dims_out split_with_sizes_copy.out"
).split()
_PRODUCTS = "mm addmm bmm baddbmm _addmm_activation".split()
_LIBRARIES = ("bitsandbytes",)


class Choices:
    """While entered, operations on CUDA tensors go where a card would send them."""

    def __init__(self, simulation: Simulation, kernels: Kernels, copies: Copies) -> None:
        self._simulation = simulation
        self._kernels = kernels
        self._copies = copies
        self._attention = Attention(simulation.cards)
        self._undo = contextlib.ExitStack()
        self._workspaces: dict[tuple[int, int], torch.Tensor] = {}

    def __enter__(self) -> Choices:
        with contextlib.ExitStack() as undo, warnings.catch_warnings():
            # That a kernel takes the place of another is what this is about.
            warnings.filterwarnings("ignore", message=".*[Oo]verrid")
            everywhere = _library(undo, "_")
            everywhere.fallback(self._kernels.run, "CUDA")
            aten = _library(undo, "aten")
            aten.impl("copy_", self._copies.copy_, "CUDA")
            aten.impl("_local_scalar_dense", self._copies.scalar, "CUDA")
            for name in [*_OWN_KERNELS, *_foreach()]:
                aten.impl(name, self._kernels.of(_op("aten", name)), "CUDA")
            for name in _PRODUCTS:
                aten.impl(f"{name}.out", self._product(self._kernels.of(_op("aten", f"{name}.out"))), "CUDA")
            for name, with_scratch in scratch.KERNELS.items():
                aten.impl(name, with_scratch(self._kernels.of(_op("aten", name))), "CUDA")
            for key in ("CUDA", "AutogradCUDA"):
                aten.impl("scaled_dot_product_attention", self._attention, key)
            for library in _LIBRARIES:
                self._take_over(undo, library)
            undo.enter_context(Patch(torch.library, "register_kernel", self._without_cuda))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def release_workspaces(self) -> None:
        self._workspaces.clear()

    def _product(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """Each thread's first product on a card takes the workspace that torch gives cuBLAS."""

        def product(*args: Any, **kwargs: Any) -> Any:
            result = kernel(*args, **kwargs)
            device = args[0].device.index
            key = (threading.get_ident(), device)
            if key not in self._workspaces:
                size = self._simulation.cards[device].workspace
                self._workspaces[key] = torch.empty(size, dtype=torch.uint8, device=args[0].device)
            return result

        return product

    def _take_over(self, undo: contextlib.ExitStack, namespace: str) -> None:
        """A library's kernels for cards call its CUDA code: here its operations have a shape, like all others."""
        library = None
        for name in torch._C._dispatch_get_all_op_names():
            if name.startswith(f"{namespace}::"):
                library = library or _library(undo, namespace)
                library.impl(name.partition("::")[2], self._kernels.of(_op(*name.split("::"))), "CUDA")

    def _without_cuda(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """A library that is imported now would register kernels that need a card."""

        def register_kernel(op: Any, device_types: Any, func: Any = None, /, **kwargs: Any) -> Any:
            if device_types in ("cuda", ["cuda"], ("cuda",)):
                return (lambda function: function) if func is None else None
            if (device_types is None or device_types == "default") and str(op).startswith(
                tuple(f"{library}::" for library in _LIBRARIES)
            ):
                self._later(str(op))
            return found(op, device_types, func, **kwargs)

        return register_kernel

    def _later(self, name: str) -> None:
        library = _library(self._undo, name.partition("::")[0])
        library.impl(name.partition("::")[2], self._kernels.of(_op(*name.split("::"))), "CUDA")


def _foreach() -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return [name.partition("::")[2] for name in names if name.startswith("aten::_foreach_")]


def _library(undo: contextlib.ExitStack, namespace: str) -> Library:
    library = Library(namespace, "IMPL")
    undo.callback(library._destroy)
    return library


def _op(namespace: str, name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
