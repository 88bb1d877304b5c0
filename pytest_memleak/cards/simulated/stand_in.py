"""A number that nobody computed, in a program's hands: to be logged and calculated with, and not to be gone by.

It is a float to whoever asks, 1.0 at first. What is calculated from it is such a number again. Comparing it, or taking
it for an integer, a truth or a key, is a decision by an unknown value. It is taken to be finite, like all that nobody
knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch

from pytest_memleak.cards.simulated.unknowns import Unknowns

_UNARY = ("neg", "pos", "abs")
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow")
_COMPARED = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_GONE_BY = {
    "bool": "as true or false",
    "int": "as an integer",
    "trunc": "as an integer",
    "floor": "as an integer",
    "ceil": "as an integer",
    "hash": "as a key",
}
_COMPARED_IN_NUMPY = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
_WENT_WRONG = (ArithmeticError, ValueError)
"""What calculating raises for the values of its numbers."""


class StandIn(float):
    """See above. A pickle or a JSON file of it holds an ordinary float."""

    __slots__ = ("_unknowns",)
    _unknowns: Unknowns

    _last: ClassVar[Unknowns]

    def __new__(cls, value: Any = 0.0, unknowns: Unknowns | None = None) -> StandIn:
        """Some calculate with plain numbers and make the result what their input was, by its type alone."""
        made = super().__new__(cls, float.__float__(value) if type(value) is StandIn else value)
        made._unknowns = StandIn._last if unknowns is None else unknowns
        StandIn._last = made._unknowns
        return made

    def calculate(self, found: Callable[..., Any], *numbers: Any) -> Any:
        """What `found` makes of numbers, one of which is this."""
        try:
            result = found(*numbers)
        except _WENT_WRONG:
            self._unknowns.decided("a number that was read, and calculating with it failed")
            raise
        if isinstance(result, tuple):
            return tuple(StandIn(one, self._unknowns) if isinstance(one, float) else one for one in result)
        return StandIn(result, self._unknowns) if isinstance(result, float) else result

    def __round__(self, ndigits: Any = None) -> Any:
        if ndigits is None:
            self._unknowns.decided("a number that was read, as an integer")
        return self.calculate(float.__round__, self, ndigits)

    def __float__(self) -> float:
        self._unknowns.lost("float()")
        return float.__float__(self)

    def as_integer_ratio(self) -> tuple[int, int]:
        self._unknowns.lost("as_integer_ratio()")
        return float.as_integer_ratio(self)

    def hex(self) -> str:
        self._unknowns.lost("hex()")
        return float.hex(self)

    def is_integer(self) -> bool:
        self._unknowns.decided("a number that was read, as an integer")
        return float.is_integer(self)

    def __copy__(self) -> StandIn:
        return self

    def __deepcopy__(self, memo: object) -> StandIn:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[type[float], tuple[float]]:
        self._unknowns.lost("a pickle")
        return float, (float.__float__(self),)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """numpy's arrays hold ordinary numbers."""
        if ufunc.__name__ in _COMPARED_IN_NUMPY:
            self._unknowns.decided(f"a number that was read, {ufunc.__name__} in numpy")
        else:
            self._unknowns.lost("in numpy")
        return getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A tensor that such a number went into is unknown."""
        result = func(*_plain(args), **_plain(kwargs or {}))
        for one in result if isinstance(result, list | tuple) else (result,):
            if isinstance(one, torch.Tensor):
                torch.ops.memleak_card.forget(one)
        return result


def first_in(values: Iterable[Any]) -> StandIn | None:
    """The first of them, if there is one among the values, or in lists of them."""
    for value in values:
        if type(value) is StandIn:
            return value
        if isinstance(value, list | tuple) and (found := first_in(value)) is not None:
            return found
    return None


def _plain(value: Any) -> Any:
    if type(value) is StandIn:
        return float.__float__(value)
    if isinstance(value, list | tuple):
        return type(value)(_plain(one) for one in value)
    return {name: _plain(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _calculated(name: str) -> Callable[..., Any]:
    found = getattr(float, name)

    def calculated(self: StandIn, *others: Any) -> Any:
        return self.calculate(found, self, *others)

    return calculated


def _compared(name: str, sign: str) -> Callable[..., Any]:
    found = getattr(float, name)

    def compared(self: StandIn, other: Any) -> Any:
        result = found(self, other)
        certain = other is self or (isinstance(other, float) and not math.isfinite(other))
        if result is not NotImplemented and not certain:
            self._unknowns.decided(f"a number that was read, {sign} {other!r}")
        return result

    return compared


def _gone_by(name: str, words: str) -> Callable[..., Any]:
    found = getattr(float, name)

    def gone_by(self: StandIn) -> Any:
        self._unknowns.decided(f"a number that was read, {words}")
        return found(self)

    return gone_by


for _name in (*_UNARY, *_BINARY, *(f"r{one}" for one in _BINARY)):
    setattr(StandIn, f"__{_name}__", _calculated(f"__{_name}__"))
for _name, _sign in _COMPARED.items():
    setattr(StandIn, f"__{_name}__", _compared(f"__{_name}__", _sign))
for _name, _words in _GONE_BY.items():
    setattr(StandIn, f"__{_name}__", _gone_by(f"__{_name}__", _words))
