"""What Python reads of tensors while the card is there: numbers that nobody computed are labelled on their way out."""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from pytest_memleak.cards.simulated import torch_inside
from pytest_memleak.cards.simulated.stand_in import StandIn, first_in
from pytest_memleak.cards.simulated.unknowns import PLACEHOLDER, Unknowns
from pytest_memleak.upstream.patches import Patch

_CALCULATE = (
    *("exp", "exp2", "expm1", "log", "log10", "log1p", "log2", "pow", "sqrt", "cbrt"),
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "sin", "sinh", "tan", "tanh"),
    *("copysign", "degrees", "erf", "erfc", "fabs", "fma", "fmod", "frexp", "gamma", "ldexp", "lgamma", "modf"),
    *("nextafter", "radians", "remainder", "ulp"),
    *("dist", "fsum", "hypot", "prod", "sumprod"),
)
"""Of the math module, which takes a float's value without asking it; some are newer than the oldest Python."""
_OF_STATISTICS = ("fsum", "hypot", "sqrt")
"""What this module has taken from that one."""
_MAKE = ("tensor", "as_tensor", "full", "full_like", "scalar_tensor", "asarray")
"""Of torch, which does the same with numbers that tensors are made of."""
_MAKE_ALIKE = ("new_full", "new_tensor")
_TAKE = ("add_", "sub_", "addcmul_", "addcdiv_")
"""Those with a factor that is nothing but a number: alpha, value. What may be a tensor asks by itself.

Only in place: where a function in Python stands before an operation, the operands are let go of in another order.
"""
Method = Callable[..., Any]


def patches(unknowns: Unknowns) -> list[Patch]:
    """Of all that reads."""
    torch_inside.keep_constructors()
    return [
        *(Patch(torch.Tensor, name, functools.partial(instead, unknowns)) for name, instead in _OF_TENSORS.items()),
        *(Patch(owner, name, follow) for owner, names, follow in _FUNCTIONS for name in names if hasattr(owner, name)),
        Patch(math, "isclose", functools.partial(_isclose, unknowns)),
        Patch(torch.Tensor, "__setitem__", _setitem),
        Patch(torch, "from_dlpack", _from_dlpack),
    ]


@contextlib.contextmanager
def labelled(readings: Iterable[Patch]) -> Iterator[None]:
    """Until the end what is read is a `StandIn` where the card has no value. It may be entered again with the same."""
    with contextlib.ExitStack() as undo:
        for patch in readings:
            undo.enter_context(patch)
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


def _handed_on(what: str, unknowns: Unknowns, found: Method) -> Method:
    """To those who read its memory."""

    def handed_on(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        values = found(tensor, *args, **kwargs)
        if _known(tensor):
            return values
        if tensor.is_floating_point() or tensor.is_complex():
            unknowns.numbers(what, tensor.numel())
            unknowns.lost(what)
        else:
            unknowns.decided(what)
        return values

    return handed_on


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


_OF_TENSORS: dict[str, Callable[[Unknowns, Method], Method]] = {
    "item": _item,
    "tolist": _tolist,
    "numpy": functools.partial(_handed_on, "numpy()"),
    "__dlpack__": functools.partial(_handed_on, "by DLPack"),
    "__float__": _float,
    "__int__": _int,
    "__repr__": _repr,
}


_DLPACK = torch.Tensor.__dlpack__


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
    def calculated(*numbers: Any, **kwargs: Any) -> Any:
        # Some take many, and what can be gone through once is gone through here.
        given = [list(one) if isinstance(one, Iterator) else one for one in numbers]
        label = first_in(given)
        return found(*given, **kwargs) if label is None else label.calculate(functools.partial(found, **kwargs), *given)

    return torch_inside.known_to_scripts(found, calculated)


@functools.cache
def _made(found: Method) -> Method:
    def made(*args: Any, **kwargs: Any) -> Any:
        tensor = found(*args, **kwargs)
        if first_in((*args, *kwargs.values())) is not None:
            torch.ops.memleak_card.forget(tensor)
        return tensor

    return torch_inside.known_to_scripts(found, made)


@functools.cache
def _taken(found: Method) -> Method:
    def taken(*args: Any, **kwargs: Any) -> Any:
        tensor = found(*args, **kwargs)
        if kwargs and first_in(kwargs.values()) is not None:
            torch.ops.memleak_card.forget(tensor)
        return tensor

    return torch_inside.known_to_scripts(found, taken)


_FUNCTIONS: tuple[tuple[Any, tuple[str, ...], Callable[[Method], Method]], ...] = (
    (math, _CALCULATE, _calculated),
    (statistics, _OF_STATISTICS, _calculated),
    (torch, _MAKE, _made),
    (torch.Tensor, _MAKE_ALIKE, _made),
    (torch.Tensor, _TAKE, _taken),
)
"""Whose, by what names, and what takes their place."""


def _setitem(found: Method) -> Method:
    def __setitem__(tensor: torch.Tensor, index: Any, value: Any) -> None:
        found(tensor, index, value)
        if type(value) is StandIn:
            torch.ops.memleak_card.forget(tensor)

    return __setitem__


def _from_dlpack(found: Method) -> Method:
    def from_dlpack(given: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not isinstance(given, torch.Tensor) or _known(given):
            return found(given, *args, **kwargs)
        tensor = found(_DLPACK(given))
        torch.ops.memleak_card.forget(tensor)
        return tensor

    return from_dlpack


def _isclose(unknowns: Unknowns, found: Method) -> Method:
    def isclose(*numbers: Any, **kwargs: Any) -> bool:
        certain = any(isinstance(one, float) and not math.isfinite(one) for one in numbers)
        if not certain and first_in((*numbers, *kwargs.values())) is not None:
            unknowns.decided("a number that was read, math.isclose()")
        return bool(found(*numbers, **kwargs))

    return isclose
