"""Where an operation goes that a card would do in another way than torch does without CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from types import TracebackType

import torch

from pytest_memleak.cards.simulated import torch_inside
from pytest_memleak.cards.simulated.bitsandbytes_kernels import BitsandbytesKernels
from pytest_memleak.cards.simulated.presumptions import Presumptions
from pytest_memleak.cards.simulated.profiles import Profile

# Operations that a card does in one kernel, and torch without CUDA puts together from others.
_OWN_KERNELS = (
    "convolution",
    "isinf",
    "convolution_backward",
    "native_layer_norm",
    "native_group_norm",
    "_fused_rms_norm",
    # Cards before Hopper do these products one after another, into the same result.
    "_grouped_mm",
    "index.Tensor",
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
# What the native part registers by itself.
_NATIVE = frozenset(
    f"aten::{name}"
    for name in (
        "empty.memory_format",
        "empty_strided",
        "as_strided",
        "view",
        "resize_",
        "set_.source_Storage_storage_offset",
        "set_.source_Storage",
        "record_stream",
        "copy_",
        "_local_scalar_dense",
        "is_nonzero",
    )
)
# From here on torch's wheels come with a cuDNN that it prefers for attention (newer than 9.15).
_CUDNN_PREFERRED_SINCE = (2, 10)


class Choices:
    """While entered, operations on CUDA tensors go where a card would send them."""

    def __init__(self, native: ctypes.PyDLL, cards: Sequence[Profile], presumptions: Presumptions) -> None:
        self._native = native
        self._cards = cards
        self._bitsandbytes = BitsandbytesKernels(presumptions)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Choices:
        for index, card in enumerate(self._cards):
            facts = (*card.capability, card.processors, card.threads, _prefers_cudnn(card))
            self._native.memleak_card_facts(index, *facts)
        with contextlib.ExitStack() as undo:
            known = torch_inside.operations()
            for name in _OWN_KERNELS:
                if f"aten::{name}" in known:
                    self._take_over(f"aten::{name}")
            for name in known:
                if name.startswith(_FOREACH) or _needs_cuda(name):
                    self._take_over(name)
            undo.enter_context(self._bitsandbytes)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _take_over(self, name: str) -> None:
        namespace, _, rest = name.partition("::")
        self._native.memleak_card_take_over(namespace.encode(), rest.encode())


def _needs_cuda(name: str) -> bool:
    """A torch that is built for CUDA has kernels of its own, which would look for a driver."""
    return name not in _NATIVE and torch_inside.has_kernel_for_cuda(name)


def _prefers_cudnn(card: Profile) -> bool:
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    unwanted = os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1"
    return release >= _CUDNN_PREFERRED_SINCE and not unwanted and card.capability[0] in (9, 10)
