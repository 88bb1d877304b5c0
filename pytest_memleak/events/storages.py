"""From Python objects to the CPU memory behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any, cast

import torch

_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


# Read through the base class: a subclass, or a mode that the program switched on, may answer with code of its own.
_BASE: Any = torch._C.TensorBase


def tensors_among(objects: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors, and the gradients which nobody has looked at yet: those have no Python object of their own."""
    objects = list(objects)
    # By type and never by isinstance, which asks proxies and mocks for __class__ and so runs their code.
    types = list(map(type, objects))
    # A class that is its own metaclass (h11 has some) has no ``__mro__`` left once the collector has taken it apart.
    tensor_types = {one for one in set(types) if torch.Tensor in getattr(one, "__mro__", ())}
    tensors: Iterator[Any] = compress(objects, map(tensor_types.__contains__, types))
    for tensor in tensors:
        yield tensor
        with torch._C.DisableTorchFunction():
            grad = _gradient(tensor)
        if grad is not None:
            yield grad


def cpu_storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The storages in the process's memory that hold a tensor's values; none for fake, meta and device tensors."""
    with torch._C.DisableTorchFunction():
        try:
            layout = _BASE.layout.__get__(tensor)
            if layout in _SPARSE_PARTS:
                with torch._C._DisableTorchDispatch():
                    parts = [getattr(_BASE, part)(tensor) for part in _SPARSE_PARTS[layout]]
                return [storage for part in parts for storage in cpu_storages(part)]
            if type(tensor) is not torch.Tensor and hasattr(type(tensor), "__tensor_flatten__"):
                # A wrapper has no memory but that of the tensors inside.
                inner = [getattr(tensor, name) for name in cast(Any, tensor).__tensor_flatten__()[0]]
                return [storage for part in inner for storage in cpu_storages(part)]
            # Of the storage, not of the tensor: a fake tensor says "cpu" and has nothing there.
            storage = _BASE.untyped_storage(tensor)
            return [storage] if storage.device.type == "cpu" else []
        except Exception:  # noqa: BLE001
            # Opaque tensors (MKL-DNN, functional wrappers) refuse to show a storage, and a wrapper that the program
            # did not finish building raises what its own code raises: there is none to count.
            return []


def device_type_of(tensor: torch.Tensor) -> str | None:
    """``cpu``, ``cuda``, …, whatever a subclass says of itself; None for one that has no device."""
    with torch._C.DisableTorchFunction():
        try:
            return str(_BASE.device.__get__(tensor).type)
        except RuntimeError:
            return None  # not built to the end


def device_of(tensor: torch.Tensor) -> str | None:
    """The same with the number of the card: ``cuda:0``."""
    with torch._C.DisableTorchFunction():
        try:
            return str(_BASE.device.__get__(tensor))
        except RuntimeError:
            return None


def unique_cpu_storages(objects: Iterable[object]) -> Iterator[torch.UntypedStorage]:
    """Every storage with bytes behind it once, however many tensors look at it."""
    seen: set[int] = set()
    for tensor in tensors_among(objects):
        for storage in cpu_storages(tensor):
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                if storage.nbytes():
                    yield storage


def address_of(storage: torch.UntypedStorage) -> int:
    """Where its bytes are; 0 for none."""
    try:
        return storage.data_ptr()
    except RuntimeError:
        return 0  # torch calls such a storage invalid: it has a size and no memory


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    try:
        if _BASE.is_leaf.__get__(tensor) and _BASE.requires_grad.__get__(tensor):
            return cast("torch.Tensor | None", _BASE.grad.__get__(tensor))
    except RuntimeError:
        pass  # some opaque tensors refuse to tell
    return None
