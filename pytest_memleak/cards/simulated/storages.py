"""Storages by themselves, without a tensor: made, copied and resized on the simulated card as on a real one.

They take the place of what of `torch.UntypedStorage` is compiled for CUDA alone. Typed storages, deep copies,
`torch.save` and `torch.load` are built on it.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pytest_memleak.cards.simulated.torch_inside import handle
from pytest_memleak.cards.simulated.unknowns import Unknowns
from pytest_memleak.upstream.patches import Patch

# torch has no types for either.
_Storage: Any = torch.UntypedStorage
_Typed: Any = torch.TypedStorage


@contextlib.contextmanager
def of_card(native: ctypes.PyDLL, unknowns: Unknowns) -> Iterator[None]:
    """Until the end storages may be on the card that `native` is."""
    storages = _Storages(native, unknowns)
    with contextlib.ExitStack() as undo:
        for name in ("__new__", "copy_", "resize_"):
            undo.enter_context(Patch(_Storage, name, getattr(storages, name.strip("_"))))
        yield


class _Storages:
    """What takes the place of torch's own methods, by name."""

    def __init__(self, native: ctypes.PyDLL, unknowns: Unknowns) -> None:
        self._native = native
        self._unknowns = unknowns

    def new(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
            device = kwargs.get("device")
            if device is None or kwargs.get("allocator") is not None or torch.device(device).type != "cuda":
                return found(cls, *args, **kwargs)
            if args and hasattr(args[0], "__len__"):
                content = found(cls, *args)
                return __new__(cls, content.nbytes(), device=device).copy_(content)
            with torch.cuda.device(device):
                return found(cls, *args, allocator=self._native.memleak_card_allocator())

        return __new__

    def copy(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def copy_(storage: Any, source: Any, non_blocking: bool | None = None) -> Any:
            untyped = source.untyped() if isinstance(source, _Typed) else source
            devices = {one.device.type if isinstance(one, _Storage) else None for one in (storage, untyped)}
            if not {"cuda"} <= devices <= {"cpu", "cuda"}:
                return found(storage, source, non_blocking)
            if storage.nbytes() != untyped.nbytes():
                raise RuntimeError(
                    f"size does not match, self was {storage.nbytes()} bytes but src was {untyped.nbytes()} bytes"
                )
            if self._native.memleak_card_copy_storage(handle(storage), handle(untyped)):
                self._unknowns.lost(f"{storage.nbytes()} bytes of a storage")
            return storage

        return copy_

    def resize(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def resize_(storage: Any, size: int) -> Any:
            if storage.device.type != "cuda":
                return found(storage, size)
            if not storage.resizable():
                raise RuntimeError("Trying to resize storage that is not resizable")
            # The old block is there until the new one is, also where the new one is smaller.
            fresh = _Storage(operator.index(size), device=storage.device)
            self._native.memleak_card_replace_storage(handle(storage), handle(fresh))
            return storage

        return resize_
