"""Where an operation goes that a card would do in another way than torch does without CUDA."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
import torch._meta_registrations
from torch.library import Library

from pytest_memleak.cards.simulated.attention import Attention
from pytest_memleak.cards.simulated.profiles import Profile
from pytest_memleak.upstream.patches import Patch

# Operations that a card does in one kernel, and torch without CUDA puts together from others.
_OWN_KERNELS = (
    "convolution",
    "convolution_backward",
    "native_layer_norm",
    "native_group_norm",
    "silu_backward",
    "mish_backward",
    "addr",
    "addr.out",
    "_chunk_cat",
    "_chunk_cat.out",
    "all.dims",
    "all.dims_out",
    "any.dims",
    "any.dims_out",
    "split_with_sizes_copy.out",
)
_FOREACH = "aten::_foreach_"
# Their kernels for cards call CUDA code of their own; they say what shape their results have.
_LIBRARIES = ("bitsandbytes",)


class Choices:
    """While entered, operations on CUDA tensors go where a card would send them."""

    def __init__(self, native: ctypes.PyDLL, cards: Sequence[Profile]) -> None:
        self._native = native
        self._attention = Attention(cards)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Choices:
        with contextlib.ExitStack() as undo:
            for name in _OWN_KERNELS:
                self._take_over(f"aten::{name}")
            for name in torch._C._dispatch_get_all_op_names():
                if name.startswith((_FOREACH, *(f"{library}::" for library in _LIBRARIES))):
                    self._take_over(name)
            aten = Library("aten", "IMPL")
            undo.callback(aten._destroy)
            for key in ("CUDA", "AutogradCUDA"):
                aten.impl("scaled_dot_product_attention", self._attention, key)
            undo.enter_context(Patch(torch.library, "register_kernel", self._without_cuda))
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _take_over(self, name: str) -> None:
        namespace, _, rest = name.partition("::")
        self._native.memleak_card_take_over(namespace.encode(), rest.encode())

    def _without_cuda(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """A library that is imported now would register kernels that need a card, or that stand in for them."""

        def register_kernel(op: Any, device_types: Any = None, func: Any = None, /, **kwargs: Any) -> Any:
            name = op if isinstance(op, str) else str(op)
            if name.partition("::")[0] not in _LIBRARIES:
                return found(op, device_types, func, **kwargs)
            if device_types in ("cuda", ["cuda"], ("cuda",)):
                return (lambda function: function) if func is None else None
            registered = found(op, device_types, func, **kwargs)
            self._take_over(name)
            return registered

        return register_kernel
