"""Storages that come into being past torch's allocator or past its dispatcher, told while somebody listens."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from pytest_memleak.events.storages import cpu_storages
from pytest_memleak.upstream.patches import Patch

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
_undo: list[Callable[[], None]] = []


def tell(listener: Listener) -> None:
    """May be called again; `tell_no_more` is then due as often."""
    if not _listeners:
        _install()
    _listeners.append(listener)


def tell_no_more(listener: Listener) -> None:
    if listener in _listeners:
        _listeners.remove(listener)
    if not _listeners:
        while _undo:
            _undo.pop()()


def _install() -> None:
    for owner, name in _TAKING:
        _replace(owner, name, _taking)
    for owner, name in _MAPPING:
        _replace(owner, name, functools.partial(_making, mapped=True))
    for owner, name in _MAKING:
        _replace(owner, name, _making)
    # The simulated card replaces it as well, and comes and goes in any order.
    resizing = Patch(torch.UntypedStorage, "resize_", _resizing)
    resizing.__enter__()
    _undo.append(lambda: resizing.__exit__(None, None, None))
    _replace(torch.UntypedStorage, "__init__", _initialising)


def _replace(owner: Any, name: str, around: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(owner, name, None)
    if original is None:
        return  # not in this torch
    own = vars(owner).get(name)
    made: Any = functools.wraps(original)(around(original))
    if isinstance(owner, type) and getattr(original, "__self__", None) is owner:
        made = staticmethod(made)  # a class method, and bound to this class
    setattr(owner, name, made)

    def undo() -> None:
        # Somebody who wrapped it after us keeps their wrapper; ours then only passes on.
        if vars(owner).get(name) is made:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

    _undo.append(undo)


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
