"""Plain data, as JSON has it, back into frozen dataclasses: checked by type hints, with the place of what is wrong.

Fields that a class does not know are left out, since a later release may have added them.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pytest_memleak.errors import BadInput

_PLAIN = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def decoded(hint: Any, value: Any, where: str) -> Any:
    """The value as the hint says; a `BadInput` names the place within the document otherwise."""
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _object(hint, _expected(dict, value, where, "an object"), where)
    if hint in _PLAIN:
        return _plain(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(value, where, " or ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        return _several(arguments, _expected(list, value, where, "a list"), where)
    if origin is Mapping:
        found = _expected(dict, value, where, "an object")
        return {name: decoded(arguments[1], one, f"{where}.{name}") for name, one in found.items()}
    if origin in (Union, types.UnionType):
        # Of two: something, or nothing.
        return None if value is None else decoded(next(one for one in arguments if one is not type(None)), value, where)
    raise TypeError(f"{where}: {hint} is not one of the hints that are read here")


def _object(cls: Any, data: dict[str, Any], where: str) -> Any:
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if field.name in data:
            values[field.name] = decoded(hints[field.name], data[field.name], f"{where}.{field.name}".lstrip("."))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise BadInput(f"{where or 'the document'} has no {field.name!r}")
    return cls(**values)


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _plain(hint: type, value: Any, where: str) -> Any:
    kinds = (int, float) if hint is float else hint
    # To Python true is a number.
    if not isinstance(value, kinds) or (isinstance(value, bool) and hint is not bool):
        raise _wrong(value, where, _PLAIN[hint])
    return value


def _several(hints: tuple[Any, ...], found: list[Any], where: str) -> tuple[Any, ...]:
    if hints[1:] == (...,):
        hints = hints[:1] * len(found)
    if len(hints) != len(found):
        raise _wrong(found, where, f"a list of {len(hints)}")
    return tuple(decoded(hint, one, f"{where}[{at}]") for at, (hint, one) in enumerate(zip(hints, found, strict=True)))


def _expected(kind: type, value: Any, where: str, what: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(value, where, what)
    return value


def _wrong(value: Any, where: str, what: str) -> BadInput:
    return BadInput(f"{where or 'the document'} is {value!r:.60}, and has to be {what}")
