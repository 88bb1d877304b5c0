"""What Python reads of tensors while the card is there: numbers that nobody computed are labelled on their way out."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pytest_memleak.cards.simulated import torch_inside
from pytest_memleak.cards.simulated.stand_in import StandIn, first_in
from pytest_memleak.cards.simulated.unknowns import PLACEHOLDER, Unknowns
from pytest_memleak.upstream.patches import Patch

_CALCULATE = ("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "sqrt")
"""Of the math module, which takes a float's value without asking it."""
_MAKE = ("tensor", "as_tensor", "full")
"""Of torch, which does the same."""
Method = Callable[..., Any]


@contextlib.contextmanager
def labelled(unknowns: Unknowns) -> Iterator[None]:
    """Until the end what is read is a `StandIn` where the card has no value."""
    with contextlib.ExitStack() as undo:
        for name, instead in _OF_TENSORS.items():
            undo.enter_context(Patch(torch.Tensor, name, functools.partial(instead, unknowns)))
        for name in _CALCULATE:
            undo.enter_context(Patch(math, name, _calculated))
        torch_inside.keep_constructors()
        for name in _MAKE:
            undo.enter_context(Patch(torch, name, _made))
        yield


def for_good() -> None:
    """What outlives the card: tensors on the CPU that are marked (native/marks.cpp), and files with numbers in them."""
    for name in ("new_tensor", "new"):  # torch can make nothing of the kind of a marked tensor
        Patch(torch.Tensor, name, _of_unmarked).__enter__()
    # torch.load asks which functions make what was saved, and this one makes a float of a `StandIn`.
    torch.serialization.add_safe_globals([float])


def _item(unknowns: Unknowns, found: Method) -> Method:
    def item(tensor: torch.Tensor) -> Any:
        value, made_up = unknowns.read(lambda: found(tensor))
        if made_up and isinstance(value, float):
            return StandIn(value, unknowns)
        if made_up:
            unknowns.lost("a complex number")
        return value

    return item


def _tolist(unknowns: Unknowns, found: Method) -> Method:
    def filled(shape: Sequence[int]) -> Any:
        return [filled(shape[1:]) for _ in range(shape[0])] if shape else StandIn(PLACEHOLDER, unknowns)

    def tolist(tensor: torch.Tensor) -> Any:
        values = found(tensor)
        if _known(tensor):
            return values
        if not tensor.is_floating_point():
            unknowns.decided("tolist()")
            return values
        unknowns.numbers("tolist()", tensor.numel())
        return filled(tensor.shape)

    return tolist


def _numpy(unknowns: Unknowns, found: Method) -> Method:
    def numpy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        values = found(tensor, *args, **kwargs)
        if _known(tensor):
            return values
        if tensor.is_floating_point() or tensor.is_complex():
            unknowns.numbers("numpy()", tensor.numel())
            unknowns.lost("numpy()")
        else:
            unknowns.decided("numpy()")
        return values

    return numpy


def _float(unknowns: Unknowns, found: Method) -> Method:
    def __float__(tensor: torch.Tensor) -> Any:
        value, made_up = unknowns.read(lambda: found(tensor))
        if made_up:
            unknowns.lost("float()")  # which Python lets be nothing but a float
        return value

    return __float__


def _int(unknowns: Unknowns, found: Method) -> Method:
    def __int__(tensor: torch.Tensor) -> Any:
        return unknowns.read(lambda: found(tensor), as_decision=True)[0]

    return __int__


def _repr(unknowns: Unknowns, found: Method) -> Method:
    def __repr__(tensor: torch.Tensor, *, tensor_contents: str | None = None) -> Any:
        if tensor_contents is None and not _known(tensor):
            tensor_contents = f"unknown, size={tuple(tensor.shape)}"
        return found(tensor, tensor_contents=tensor_contents)

    return __repr__


_OF_TENSORS = {
    "item": _item,
    "tolist": _tolist,
    "numpy": _numpy,
    "__float__": _float,
    "__int__": _int,
    "__repr__": _repr,
}


def _known(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.memleak_card.knows(tensor))


def _of_unmarked(found: Method) -> Method:
    def made(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if tensor.device.type == "cpu" and not _known(tensor):
            tensor = torch.empty(0, dtype=tensor.dtype, device="cpu")
        return found(tensor, *args, **kwargs)

    return made


# These are kept, and the same every time: TorchScript remembers functions by their addresses.
@functools.cache
def _calculated(found: Method) -> Method:
    def calculated(*numbers: Any) -> Any:
        label = first_in(numbers)
        return found(*numbers) if label is None else label.calculate(found, *numbers)

    return torch_inside.known_to_scripts(found, calculated)


@functools.cache
def _made(found: Method) -> Method:
    def made(*args: Any, **kwargs: Any) -> Any:
        tensor = found(*args, **kwargs)
        given = (*args, *kwargs.values())
        if any(first_in(one if isinstance(one, list | tuple) else (one,)) is not None for one in given):
            torch.ops.memleak_card.forget(tensor)
        return tensor

    return torch_inside.known_to_scripts(found, made)
