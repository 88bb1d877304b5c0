"""Storages that come into being past torch's allocator or past its dispatcher, told while somebody listens."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from types import ClassMethodDescriptorType
from typing import Any

import torch

from pytest_memleak.events.storages import cpu_storages
from pytest_memleak.upstream.patches import Patch

Around = Callable[[Callable[..., Any]], Callable[..., Any]]
Listener = Callable[[torch.UntypedStorage, bool], None]
"""Gets the storage, and whether it lies in a file."""

# Those that take other people's memory as it is; what they are given is their first argument.
_TAKING: tuple[tuple[Any, str], ...] = (
    (torch, "from_numpy"),
    (torch, "frombuffer"),
    (torch, "as_tensor"),
    (torch, "asarray"),
    (torch, "from_dlpack"),
    (torch.utils.dlpack, "from_dlpack"),
)
_MAPPING: tuple[tuple[Any, str], ...] = ((torch, "from_file"), (torch.UntypedStorage, "from_file"))
_MAKING: tuple[tuple[Any, str], ...] = (
    (torch.UntypedStorage, "_new_shared"),
    (torch.UntypedStorage, "_new_using_filename_cpu"),
    (torch.UntypedStorage, "_new_using_fd_cpu"),
    (torch.UntypedStorage, "_new_shared_filename_cpu"),
    (torch.UntypedStorage, "_new_shared_fd_cpu"),
    (torch._utils, "_rebuild_tensor"),  # how torch.load ends
)

_listeners: list[Listener] = []
_undo = contextlib.ExitStack()


def tell(listener: Listener) -> None:
    """May be called again; `tell_no_more` is then due as often."""
    if not _listeners:
        for patch in _patches():
            _undo.enter_context(patch)
    _listeners.append(listener)


def tell_no_more(listener: Listener) -> None:
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        _undo.close()


def _patches() -> Iterator[Patch]:
    around: dict[Around, tuple[tuple[Any, str], ...]] = {
        _taking: _TAKING,
        functools.partial(_making, mapped=True): _MAPPING,
        _making: _MAKING,
        _resizing: ((torch.UntypedStorage, "resize_"),),
        _initialising: ((torch.UntypedStorage, "__init__"),),
    }
    for wrap, places in around.items():
        for owner, name in places:
            if hasattr(owner, name):  # else it is not in this torch
                yield Patch(owner, name, functools.partial(_replacing, owner, wrap))


def _replacing(owner: Any, around: Around, found: Any) -> Any:
    if isinstance(found, ClassMethodDescriptorType):
        found = found.__get__(None, owner)
        return staticmethod(functools.wraps(found)(around(found)))  # it is bound to its class already
    return functools.wraps(found)(around(found))


def _taking(original: Callable[..., Any]) -> Callable[..., Any]:
    def take(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        given = args[0] if args else next(iter(kwargs.values()), None)
        # Numbers and lists are copied into torch's own memory, and a tensor's memory is not new.
        if type(given) not in (int, float, bool, list, tuple) and not isinstance(given, torch.Tensor):
            root = _root(given)
            if not isinstance(root, torch.Tensor | torch.UntypedStorage):
                _tell(result, mapped=_is_mapped(root))
        return result

    return take


def _making(original: Callable[..., Any], mapped: bool = False) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        _tell(result, mapped)
        return result

    return make


def _resizing(original: Callable[..., Any]) -> Callable[..., Any]:
    def resize_(storage: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(storage, *args, **kwargs)
        _tell(storage, mapped=False)
        return result

    return resize_


def _initialising(original: Callable[..., Any]) -> Callable[..., Any]:
    def __init__(storage: Any, *args: Any, **kwargs: Any) -> None:
        # object.__init__ refuses arguments to a class that has an __init__ of its own, which it now has.
        if original is not object.__init__:
            original(storage, *args, **kwargs)
        _tell(storage, mapped=False)

    return __init__


def _tell(made: Any, mapped: bool) -> None:
    if isinstance(made, torch.Tensor):
        storages = cpu_storages(made)
    elif isinstance(made, torch.UntypedStorage) and made.device.type == "cpu":
        storages = [made]
    else:
        return
    for storage in storages:
        for listener in list(_listeners):
            listener(storage, mapped)


def _root(given: Any) -> Any:
    """Whose memory it is: a view of an array, or a buffer over one, belongs to what they were made from."""
    for _ in range(20):  # nobody stacks views that deep
        if type(given).__module__.partition(".")[0] == "numpy":
            below = given.base
        elif isinstance(given, memoryview):
            below = given.obj
        else:
            return given
        if below is None or _is_mapped(given):
            return given
        given = below
    return given


def _is_mapped(root: Any) -> bool:
    kind: Any = type(root)
    if kind.__name__ == "mmap" and kind.__module__ == "mmap":
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(root, numpy.memmap)
