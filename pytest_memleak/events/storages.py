"""From Python objects to the CPU memory behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

_SPARSE_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def tensors_among(objects: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors, and the gradients which nobody has looked at yet: those have no Python object of their own."""
    # By type and never by isinstance, which asks proxies and mocks for __class__ and so runs their code.
    known: dict[type, bool] = {}
    for candidate in objects:
        kind = type(candidate)
        is_tensor = known.get(kind)
        if is_tensor is None:
            is_tensor = known[kind] = torch.Tensor in kind.__mro__
        if not is_tensor:
            continue
        tensor: torch.Tensor = candidate  # type: ignore[assignment]
        yield tensor
        with torch._C.DisableTorchFunctionSubclass():
            if tensor.is_leaf and tensor.requires_grad and (grad := tensor.grad) is not None:
                yield grad


def cpu_storages(tensor: torch.Tensor) -> list[torch.UntypedStorage]:
    """The storages in the process's memory that hold a tensor's values; none for fake, meta and device tensors."""
    with torch._C.DisableTorchFunctionSubclass():
        try:
            if tensor.layout in _SPARSE_PARTS:
                parts = [getattr(tensor, part)() for part in _SPARSE_PARTS[tensor.layout]]
                return [storage for part in parts for storage in cpu_storages(part)]
            if type(tensor) is not torch.Tensor and hasattr(tensor, "__tensor_flatten__"):
                # A wrapper has no memory but that of the tensors inside.
                inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
                return [storage for part in inner for storage in cpu_storages(part)]
            # Of the storage, not of the tensor: a fake tensor says "cpu" and has nothing there.
            storage = torch.Tensor.untyped_storage(tensor)
            return [storage] if storage.device.type == "cpu" else []
        except (RuntimeError, NotImplementedError, TypeError):
            # Opaque tensors (MKL-DNN, functional wrappers) refuse to show a storage: there is none to count.
            return []


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
