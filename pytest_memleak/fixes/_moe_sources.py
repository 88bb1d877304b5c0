"""What a load of transformers 5 collected for one expert tensor, read an expert at a time.

The loader collects readers, one for each tensor of the checkpoint, and has a chain of operations for what they give:
stack the experts' matrices, put gate and up side by side, turn them. Done on all experts at once that is a whole tensor
at full precision, and a second one while it is put together. Done on one expert it is the same values, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import torch

Pieces = Iterator[torch.Tensor]
_PER_EXPERT = {
    "Transpose": ("dim0", "dim1"),
    "Interleave": ("dim",),
    "Concatenate": ("dim",),
    "Force16BytesAlignment": (),  # of GPT-OSS in 5.0: a copy where the address asks for one
}
"""Operations that leave each expert by itself, if these attributes of theirs name none of the experts' dimension."""


class Reader:
    """A tensor of the checkpoint that is read when it is called; or a part of it, where it holds several experts."""

    __slots__ = ("_spawn", "_tensor", "device", "shape")

    def __init__(self, tensor: Any, device: Any, spawn: Callable[..., Any]) -> None:
        self.device = device
        self._tensor = tensor
        self._spawn = spawn
        get_shape = getattr(tensor, "get_shape", None)
        self.shape = tuple(get_shape() if get_shape is not None else tensor.shape)

    def __call__(self) -> torch.Tensor:
        """As the loader would: on its device, in its type."""
        return self._read(self._tensor)

    def on_host(self) -> torch.Tensor:
        """In its type, and not on its device yet."""
        return self._read(self._tensor, device="cpu")

    def expert(self, number: int) -> torch.Tensor:
        """A stack of one."""
        return self._read(_Part(self._tensor, number))

    def _read(self, tensor: Any, **where: Any) -> torch.Tensor:
        job = self._spawn(tensor, **where)
        read: torch.Tensor = job.result() if isinstance(job, Future) else job()
        return read


class _Part:
    """One expert of a stack, for the loader's own reading of the whole."""

    def __init__(self, tensor: Any, number: int) -> None:
        self._tensor = tensor
        self._number = number

    def __getitem__(self, what: Any) -> torch.Tensor:
        part: torch.Tensor = self._tensor[self._number : self._number + 1]
        return part[what]


def pieces(mapping: Any, name: str, shape: torch.Size, config: Any, blocksize: int, room: int = 0) -> Pieces | None:
    """What the mapping makes of its readers, in order; None if it is nothing that can be made expert by expert. `room`:
    how many values may come at once.
    """
    collected: dict[str, list[Any]] = mapping.collected_tensors
    if not all(isinstance(one, Reader) for readers in collected.values() for one in readers):
        return None
    # In the order of the patterns: which came first in the checkpoint says nothing.
    sources = [collected[pattern] for pattern in mapping.source_patterns if pattern in collected]
    if len(sources) != len(collected) or len(mapping.target_patterns) != 1:
        return None
    operations = list(getattr(mapping, "operations", ()))
    if _are_apart(sources, shape) and _only_put_together(operations, len(sources)):
        return _of_single_experts(sources, blocksize, room)
    if not operations and sources[0][0].shape != tuple(shape):
        return None  # the loader tells of it
    if _are_stacks(sources, shape[0]) and all(map(_leaves_experts_apart, operations)):
        return _of_stacks(mapping, name, shape, config)
    return None


def _are_apart(sources: list[list[Reader]], shape: torch.Size) -> bool:
    """A matrix for each expert, or several that are one below the other."""
    count, rows, columns = shape
    if any(len(readers) != count or len({one.shape for one in readers}) > 1 for readers in sources):
        return False
    shapes = [readers[0].shape for readers in sources]
    return all(len(one) == 2 and one[1] == columns for one in shapes) and sum(one[0] for one in shapes) == rows


def _only_put_together(operations: list[Any], sources: int) -> bool:
    names = [(type(one).__name__, one.dim) for one in operations if hasattr(one, "dim")]
    together = [("MergeModulelist", 0), ("Concatenate", 1)]
    return len(names) == len(operations) and (names == together or (sources == 1 and names == together[:1]))


def _of_single_experts(sources: list[list[Reader]], blocksize: int, room: int) -> Pieces:
    device = sources[0][0].device
    if device is None or torch.device(device).type == "cpu":
        return _whole_blocks(sources, blocksize, Reader.__call__)
    return _together(_whole_blocks(sources, blocksize, Reader.on_host), torch.device(device), room)


def _whole_blocks(sources: list[list[Reader]], blocksize: int, read: Callable[[Reader], torch.Tensor]) -> Pieces:
    each_by_itself = all(math.prod(readers[0].shape) % blocksize == 0 for readers in sources)
    for matrices in zip(*sources, strict=True):
        if each_by_itself:
            yield from map(read, matrices)
        else:
            yield torch.cat(list(map(read, matrices)))


def _together(parts: Pieces, device: torch.device, room: int) -> Pieces:
    """Put side by side on the card, in the same memory each time: of thousands of matrices, what is asked of the card
    for each takes as long as their copies.
    """
    place: torch.Tensor | None = None
    filled = 0
    for part in parts:
        if place is None:
            place = torch.empty(max(room, part.numel()), dtype=part.dtype, device=device)
        if filled + part.numel() > len(place):
            yield place[:filled]
            filled = 0
        # A pickled checkpoint has strides. Nobody waits until a part has arrived: what the card is asked for next comes
        # after it, and its own memory has been read by then.
        place[filled : filled + part.numel()].copy_(part.reshape(-1), non_blocking=True)
        filled += part.numel()
    if place is not None and filled:
        yield place[:filled]


def _are_stacks(sources: list[list[Reader]], count: int) -> bool:
    return all(len(readers) == 1 and len(readers[0].shape) == 3 for readers in sources) and all(
        readers[0].shape[0] == count for readers in sources
    )


def _leaves_experts_apart(operation: Any) -> bool:
    attributes = _PER_EXPERT.get(type(operation).__name__)
    return attributes is not None and all(getattr(operation, one) > 0 for one in attributes)


def _of_stacks(mapping: Any, name: str, shape: torch.Size, config: Any) -> Pieces:
    """Upstream's own operations, each time on a stack of one expert."""
    of_one = torch.Size([1, *shape[1:]])
    # One of them asks the model which way round its parameter is.
    model = SimpleNamespace(get_parameter=lambda name: SimpleNamespace(shape=of_one))
    readers = {pattern: found[0] for pattern, found in mapping.collected_tensors.items()}
    for number in range(shape[0]):
        made: dict[str, Any] = {pattern: [reader.expert(number)] for pattern, reader in readers.items()}
        for operation in getattr(mapping, "operations", ()):
            made = operation.convert(
                made,
                source_patterns=mapping.source_patterns,
                target_patterns=mapping.target_patterns,
                full_layer_name=name,
                model=model,
                config=config,
                missing_keys=None,
            )
        (one,) = made.values()
        made.clear()
        one = one[0] if isinstance(one, list) else one
        if one.shape != of_one:
            raise ValueError(
                f"{name}: an expert of the checkpoint comes to {tuple(one.shape)}, where the model has {tuple(of_one)}"
            )
        yield one
        del one
