"""What this room knows of torch's inside: wrappers of tensors, tensors without values, the store that ranks share.

Every private name of torch that the room uses is in this file. Checked on torch 2.13.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_wrapper(tensor: torch.Tensor) -> bool:
    """A DTensor, a quantized tensor of torchao: its memory is that of tensors inside."""
    return bool(is_traceable_wrapper_subclass(tensor))


def plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """What has memory inside a wrapper: the local shard of a DTensor, the parts of a quantized tensor."""
    if not is_wrapper(tensor):
        yield tensor
        return
    wrapper: Any = tensor
    names, _ = wrapper.__tensor_flatten__()
    for name in names:
        # In 2.13 a DTensor names its mesh beside its shard.
        if isinstance(part := getattr(tensor, name), torch.Tensor):
            yield from plain(part)


def has_no_values(tensor: torch.Tensor) -> bool:
    """On the meta device, or a lazy parameter without a shape."""
    return is_lazy(tensor) or tensor.device.type == "meta"


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.shape)


def is_known(tensor: torch.Tensor) -> bool:
    """False for what was simulated: it has a size, and nobody computed what it holds."""
    fake: Any = sys.modules.get("torch._subclasses.fake_tensor")
    if fake is not None and isinstance(tensor, fake.FakeTensor):
        return False
    return not simulated() or bool(torch.ops.memleak_card.knows(tensor))


def simulated() -> bool:
    process = sys.modules.get("pytest_memleak.cards.simulated.process")
    return process is not None and process.in_force() is not None


def values_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The numbers of a tensor of any layout; None where they cannot be got at."""
    if tensor.layout == torch.strided:
        return None if tensor.is_quantized or tensor.is_nested else tensor
    if tensor.layout == torch.sparse_coo:
        return tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.values()
    return None


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """While tensors are looked at: no graph is made of it, and no subclass has its say."""
    with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
        yield


def default_store() -> Any | None:
    """What the ranks of the default process group met by; None where there is no such group."""
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()
