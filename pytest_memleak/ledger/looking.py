"""Looks into objects without running a line of their code: no properties, no ``__eq__``, no ``__repr__``.

An explanation of a leak walks through whatever a program left behind. Everything here therefore goes through the
descriptors of built-in types and through the garbage collector, never through what a class defines itself.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import threading
import types
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeGuard, TypeVar, overload

import torch

_T = TypeVar("_T")

LONGEST_LOOK = 200_000
"""No container is read further than this."""
_mro = type.__dict__["__mro__"].__get__
_class_dict = type.__dict__["__dict__"].__get__
_qualname = type.__dict__["__qualname__"].__get__
_module_of = type.__dict__["__module__"].__get__
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_grad_fn = torch._C.TensorBase.__dict__["grad_fn"].__get__
_dict_items: Any = dict.items
_args = BaseException.__dict__["args"].__get__
_DICT_DESCRIPTORS = (types.GetSetDescriptorType, types.MemberDescriptorType)
_GENERATORS = ((types.GeneratorType, "gi"), (types.CoroutineType, "cr"), (types.AsyncGeneratorType, "ag"))
LruCache = type(functools.lru_cache(int))
Edge = tuple[str, object]
"""How an object's part is written after its name (``.weight``, ``[3]``, or a variable's bare name), and the part."""


@overload
def is_a(thing: object, cls: type[_T], /) -> TypeGuard[_T]: ...


@overload
def is_a(thing: object, *classes: type) -> bool: ...


def is_a(thing: object, *classes: type) -> bool:
    """What isinstance says, without asking the object for ``__class__``."""
    return any(base is cls for base in _mro(type(thing)) for cls in classes)


def _is_one_of(cls: type, *classes: type) -> bool:
    """Membership without ``==`` and ``hash``, which a metaclass may define."""
    return any(cls is other for other in classes)


def type_name(cls: type) -> str:
    return str(_qualname(cls))


def module_of(cls: type) -> str:
    try:
        module = _module_of(cls)
    except AttributeError:  # a class made by hand may lack it
        return ""
    return module if type(module) is str else ""


def class_name(cls: type) -> str:
    """The name with its module, but for built-in classes."""
    module = module_of(cls)
    return type_name(cls) if module in ("", "builtins") else f"{module}.{type_name(cls)}"


def own_dict(thing: object) -> dict[str, object] | None:
    """The instance's ``__dict__``, also where its class hides that behind a property."""
    for cls in _mro(type(thing)):
        descriptor = _class_dict(cls).get("__dict__")
        if _is_one_of(type(descriptor), *_DICT_DESCRIPTORS):
            try:
                found: Any = descriptor.__get__(thing)
            except (AttributeError, TypeError):
                return None
            return found if is_a(found, dict) else None
    return None


def namespace_name(thing: object) -> str | None:
    """The module's name if this is the namespace of a module, imported under a name or not."""
    if type(thing) is not dict:
        return None
    name = thing.get("__name__")
    return name if type(name) is str and ("__spec__" in thing or "__builtins__" in thing) else None


def generator_part(thing: object, part: str) -> Any:
    """``gi_frame``, ``cr_frame``, ``ag_code`` …; None if this is nothing that can be suspended."""
    prefix = next((prefix for kind, prefix in _GENERATORS if type(thing) is kind), None)
    return getattr(thing, f"{prefix}_{part}") if prefix else None


def frame_locals(frame: types.FrameType) -> dict[str, object]:
    """A copy of a frame's variables that leaves no second reference to them in the frame.

    Before Python 3.13, reading ``f_locals`` leaves a dictionary in the frame that would keep its variables alive after
    the program has deleted them. It is emptied again, unless the program itself holds it, having called ``locals()``.
    """
    variables = frame.f_locals
    if not is_a(variables, dict) and type(variables).__name__ != "FrameLocalsProxy":
        return {}  # a class body with a namespace of its own kind
    found: dict[str, object] = dict(variables)
    only_the_frames = sys.getrefcount(variables) <= 3
    if type(variables) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED and only_the_frames:
        variables.clear()
    return found


def hidden_parts(thing: object) -> Iterator[object]:
    """Objects that belong to a thing so closely that a name goes past them: its ``__dict__``, a function's cells …"""
    variables = own_dict(thing)
    if variables is not None:
        yield variables
    if is_a(thing, torch.nn.Module) and variables is not None:
        yield from (variables.get(part) for part in _MODULE_PARTS)
    elif type(thing) is types.FunctionType:
        yield thing.__closure__
        yield from thing.__closure__ or ()
    elif (frame := generator_part(thing, "frame")) is not None:
        yield frame
    elif is_a(thing, BaseException):
        yield _args(thing)
        yield from tracebacks(thing)
    elif is_a(thing, type, LruCache):
        yield from (part for part in gc.get_referents(thing) if type(part) is dict)
    elif is_a(thing, threading.local):
        # Before Python 3.13, a dictionary of all threads' dictionaries; later ones are out of the collector's sight.
        for threads in (part for part in gc.get_referents(thing) if type(part) is dict):
            yield threads
            yield from (part for part in list(threads.values()) if type(part) is dict)


def edges(thing: object) -> Iterator[Edge]:
    """The parts of a thing, each with what is written after the thing's name to mean it."""
    if (frame := generator_part(thing, "frame")) is not None:
        thing = frame
    if type(thing) is types.FrameType:
        yield from frame_locals(thing).items()
    elif namespace_name(thing) is not None:
        yield from _attributes(thing)
    elif is_a(thing, dict):
        for key, value in list(islice(_dict_items(thing), LONGEST_LOOK)):
            yield f"[{_key(key)}]", value
            if gc.is_tracked(key):
                yield f" (as key {_key(key)})", key
    elif is_a(thing, list, tuple, deque):
        yield from _items(thing)
    elif is_a(thing, set, frozenset):
        yield from (("{…}", part) for part in gc.get_referents(thing))
    elif is_a(thing, type):
        yield from _attributes(_class_dict(thing))
    elif type(thing) is types.FunctionType:
        yield from _closure(thing)
    elif is_a(thing, BaseException):
        yield from ((f".args{label}", part) for label, part in _items(_args(thing)))
        yield from (("", step.tb_frame) for step in tracebacks(thing))
        for name in ("__cause__", "__context__"):
            yield f".{name}", BaseException.__dict__[name].__get__(thing)
    elif type(thing) is types.TracebackType:
        yield from (("", thing.tb_frame), ("", thing.tb_next))
    elif type(thing) is types.CellType:
        yield from (("", part) for part in gc.get_referents(thing))
    elif is_a(thing, threading.local):
        for part in hidden_parts(thing):
            yield from _attributes(part)
    elif is_a(thing, torch.Tensor):
        try:
            with torch._C.DisableTorchFunctionSubclass():
                node = _grad_fn(thing)
        except RuntimeError:
            node = None  # a view that was changed in a way which autograd refuses says so when it is asked
        yield ".grad_fn", node
    yield from _members(thing)
    if type(thing) is LruCache:
        for part in gc.get_referents(thing):
            yield from (("(…)", value) for value in (part.values() if type(part) is dict else (part,)))


def label_of(thing: object, part: object) -> str:
    """What is written after the thing's name to mean this part of it."""
    return next((label for label, found in edges(thing) if found is part), "…")


def module_tensors(module: object) -> Iterator[object]:
    """Every parameter and buffer below a module, without asking its class."""
    todo, seen = [module], {id(module)}
    while todo:
        variables = own_dict(todo.pop()) or {}
        for name in _MODULE_PARTS:
            parts = variables.get(name)
            for _, part in list(_dict_items(parts)) if is_a(parts, dict) else ():
                if id(part) in seen:
                    continue
                seen.add(id(part))
                if is_a(part, torch.nn.Module):
                    todo.append(part)
                else:
                    yield part


def _members(thing: object) -> Iterator[Edge]:
    """Instance attributes and slots; what a torch module registers counts as its attributes."""
    variables = own_dict(thing)
    if variables is not None:
        if is_a(thing, torch.nn.Module):
            for name in _MODULE_PARTS:
                parts = variables.get(name)
                for key, part in list(_dict_items(parts)) if is_a(parts, dict) else ():
                    yield (f"[{key}]" if type(key) is str and key.isdigit() else f".{key}"), part
        yield from _attributes(variables)
    for cls in _mro(type(thing)):
        for name, descriptor in list(_class_dict(cls).items()):
            if type(descriptor) is types.MemberDescriptorType:
                try:
                    yield f".{name}", descriptor.__get__(thing)
                except (AttributeError, TypeError):  # a slot that is empty
                    continue


def _attributes(variables: Any) -> Iterator[Edge]:
    return ((f".{name}", value) for name, value in list(variables.items()) if type(name) is str)


def _items(sequence: Any) -> Iterator[Edge]:
    base: Any = next(base for base in (list, tuple, deque) if is_a(sequence, base))
    fields = _class_dict(type(sequence)).get("_fields") if base is tuple else None
    if type(fields) is not tuple or any(type(name) is not str for name in fields):
        fields = ()  # no named tuple
    for index, part in enumerate(islice(base.__iter__(sequence), LONGEST_LOOK)):
        yield (f".{fields[index]}" if index < len(fields) else f"[{index}]"), part


def _closure(function: types.FunctionType) -> Iterator[Edge]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        yield from ((name, part) for part in gc.get_referents(cell))
    yield ".__defaults__", function.__defaults__
    yield ".__kwdefaults__", function.__kwdefaults__


def tracebacks(error: object) -> Iterator[types.TracebackType]:
    """An exception's, from the outermost call inwards."""
    step = BaseException.__dict__["__traceback__"].__get__(error)
    for _ in range(sys.getrecursionlimit()):
        if step is None:
            return
        yield step
        step = step.tb_next


def _key(key: Any) -> str:
    if _is_one_of(type(key), str, bytes):
        return repr(key[:40]) + ("…" if len(key) > 40 else "")
    if _is_one_of(type(key), int, bool, float, type(None)) and (type(key) is not int or key.bit_length() <= 64):
        return repr(key)
    if type(key) is tuple:
        return "(" + ", ".join(_key(part) for part in key[:4]) + (", …)" if len(key) > 4 else ")")
    return f"<{type_name(key if is_a(key, type) else type(key))}>"
