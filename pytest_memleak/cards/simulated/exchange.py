"""What several cards send each other: `torch.cuda.comm`, which `torch.nn.DataParallel` stands on, and sums by NCCL.

torch has these functions where it is built for CUDA only. Each takes the memory that CUDA's takes; NCCL's own buffers
are the driver's, and in nobody's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pytest_memleak.cards.simulated import torch_inside

Tensors = Sequence[torch.Tensor]

_SUM = 0


def _knows(tensor: torch.Tensor) -> bool:
    """Tensors of several cards are brought together on the CPU if all are known, which takes no memory of a card."""
    return bool(torch.ops.memleak_card.knows(tensor))


def _gather(tensors: Tensors, dim: int, destination: int | None) -> torch.Tensor:
    first = tensors[0]
    size = list(first.shape)
    size[dim] = sum(one.size(dim) for one in tensors)
    last = all(one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last) for one in tensors)
    index = torch.cuda.current_device() if destination is None else destination
    result = torch.empty(
        size,
        dtype=first.dtype,
        device="cpu" if index < 0 else f"cuda:{index}",
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    return _gather_out(tensors, result, dim)


def _gather_out(tensors: Tensors, result: torch.Tensor, dim: int) -> torch.Tensor:
    if all(map(_knows, tensors)):
        return result.copy_(torch.cat([one.cpu() for one in tensors], dim))
    torch.ops.memleak_card.forget(result)
    return result


def _sums(inputs: Tensors, outputs: Tensors, op: int = _SUM, streams: object = None, comms: object = None) -> None:
    if op != _SUM:
        raise NotImplementedError(f"the simulated card has NCCL's sums only, and operation {op} was asked for")
    unknown = next((one for one in inputs if not _knows(one)), None)
    total = torch.stack([one.cpu() for one in inputs]).sum(0) if unknown is None else unknown
    for output in outputs:
        output.copy_(total)


def _sum_to_one(inputs: Tensors, output: torch.Tensor, root: int = 0, op: int = _SUM, *more: object) -> None:
    _sums(inputs, [output], op)


def _broadcast(tensor: torch.Tensor, devices: Sequence[int]) -> list[torch.Tensor]:
    if tensor.is_cuda and tensor.get_device() != devices[0]:
        raise RuntimeError("device of broadcasted tensor must appear as the first on devices list")
    own = [tensor] if tensor.is_cuda else []
    return own + [tensor.to(f"cuda:{device}", copy=True) for device in devices[len(own) :]]


def _broadcast_out(tensor: torch.Tensor, outputs: Tensors) -> Tensors:
    for output in outputs:
        if output is not tensor:
            output.copy_(tensor)
    return outputs


def _broadcast_coalesced(tensors: Tensors, devices: Sequence[int], buffer_size: int) -> list[list[torch.Tensor]]:
    if any(tensor.get_device() != devices[0] for tensor in tensors):
        raise RuntimeError("all tensors must be on devices[0]")
    sent: list[list[torch.Tensor]] = [[] for _ in devices[1:]]
    chunks = torch_inside.chunks(tensors, buffer_size)
    for chunk in chunks:
        _, *copies = _broadcast(torch_inside.joined(chunk), devices)
        for found, copy in zip(sent, copies, strict=True):
            # Views of one buffer, which are to be seen as tensors of their own.
            found += [one.data for one in torch_inside.parted(copy, chunk)]
    order = [tensor for chunk in chunks for tensor in chunk]
    return [list(tensors), *(_as_given(found, order, tensors) for found in sent)]


def _as_given(found: list[torch.Tensor], order: Tensors, given: Tensors) -> list[torch.Tensor]:
    """Chunks have one type each, which mixes up what comes out of them."""
    place = {id(tensor): index for index, tensor in enumerate(order)}
    return [found[place[id(tensor)]] for tensor in given]


def _scatter(
    tensor: torch.Tensor, devices: Sequence[int], sizes: Sequence[int] | None, dim: int, streams: object = None
) -> list[torch.Tensor]:
    parts = tensor.chunk(len(devices), dim) if sizes is None else tensor.split_with_sizes(list(sizes), dim)
    return [part.to(f"cuda:{device}") for part, device in zip(parts, devices, strict=False)]


def _scatter_out(tensor: torch.Tensor, outputs: Tensors, dim: int, streams: object = None) -> Tensors:
    for output, part in zip(outputs, tensor.split_with_sizes([one.size(dim) for one in outputs], dim), strict=True):
        output.copy_(part)
    return outputs


# By torch's name.
ANSWERS: dict[str, Callable[..., Any]] = {
    "broadcast": _broadcast,
    "broadcast_out": _broadcast_out,
    "broadcast_coalesced": _broadcast_coalesced,
    "scatter": _scatter,
    "scatter_out": _scatter_out,
    "gather": _gather,
    "gather_out": _gather_out,
    "nccl_all_reduce": _sums,
    "nccl_reduce": _sum_to_one,
}
