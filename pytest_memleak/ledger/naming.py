"""Puts the way from a named object down to a tensor into the words of a failure message."""

from __future__ import annotations

import logging
import types
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise

from pytest_memleak.ledger.looking import (
    LruCache,
    class_name,
    generator_part,
    hidden_parts,
    is_a,
    label_of,
    module_of,
    namespace_name,
    own_dict,
    tracebacks,
    type_name,
)
from pytest_memleak.ledger.standing import TOOLS, Root
from pytest_memleak.upstream.where import as_typed_here

_GLOBAL, _ATTRIBUTE, _LOCAL = "module global ", "attribute ", "local "


@dataclass
class _Words:
    """A description that grows with every step: ``local '<expression>' of frame …``."""

    lead: str
    expression: str
    tail: str = ""
    anonymous: bool = False
    """Nothing that anybody could look up by this name."""
    log_record: str = ""
    """Where the log record is whose ``exc_info`` the way goes through."""
    also: str = ""
    """Other variables of the same frame that hold the same."""

    def text(self) -> str:
        if self.lead.endswith((_LOCAL, "variable ")):
            return f"{self.lead}{self.expression!r}{self.also}{self.tail}"
        if self.expression.startswith((".", "[", "(")):  # below a root that the caller named in words
            return f"{self.lead}, at {self.expression}{self.tail}"
        return f"{self.lead}{self.expression}{self.tail}"

    def place(self) -> str:
        """The same, short, inside another description."""
        return f"{self.expression}{self.tail}" if self.lead in (_GLOBAL, _ATTRIBUTE) else self.text()


def named_parts(path: Sequence[object]) -> list[object]:
    """The path without the parts that a name goes past, such as an instance's ``__dict__``."""
    kept = [path[0]]
    for step in path[1:]:
        if not any(step is part for part in hidden_parts(kept[-1])):
            kept.append(step)
    return kept


def describe(path: Sequence[object], root: Root | None = None, further: str = "", beside: Sequence[str] = ()) -> str:
    """Words for the last object of a path. `further` is what follows its name, as ``.grad``.

    `beside` are the other variables of the last frame on it that hold that object.
    """
    words = _walk(path, root)
    words.expression += further
    if beside and words.lead == _LOCAL:
        words.also = f", also {' and '.join(map(repr, beside))},"
    return words.text()


def place(path: Sequence[object], root: Root | None = None, further: str = "") -> str:
    """The same without the words ``module global``."""
    words = _walk(path, root)
    words.expression += further
    return words.place()


def describe_cycle(cycle: Sequence[object]) -> str:
    """``Node.children[0] -> Node.parent``: a cycle has no beginning, so it begins with what has a name of its own."""
    visible = [
        step for before, step in zip((cycle[-1], *cycle), cycle, strict=False)
        if not any(step is part for part in hidden_parts(before))
    ] or list(cycle)  # fmt: skip
    parts: list[str] = []
    for holder, held in zip(visible, (*visible[1:], visible[0]), strict=True):
        if is_a(holder, list, dict, tuple, set) and parts:
            parts[-1] += label_of(holder, held)
        else:
            parts.append(type_name(type(holder)) + label_of(holder, held))
    return " -> ".join(parts[:4]) + (" -> …" if len(parts) > 4 else "")


def _walk(path: Sequence[object], root: Root | None) -> _Words:
    steps = named_parts(path)
    if root is None and (own := _first_of_the_tools(steps)):
        steps = steps[own:]
        root = _root_of_a_tool(steps[0])
    words = _beginning(steps[0], root)
    before: object = None
    for holder, held in pairwise(steps):
        words = _step(words, before, holder, held)
        before = holder
    words.expression = words.expression.removesuffix("(…)")  # a cached tensor itself; a part of it keeps the mark
    return words


def _first_of_the_tools(steps: Sequence[object]) -> int:
    """Where to begin instead, if the way leads through pytest's insides, which modules show by accident.

    Any module that pytest has rewritten has its session behind ``__loader__``: a name that tells the reader nothing.
    """
    first = namespace_name(steps[0])
    if first is None or len(steps) < 2:
        return 0
    if first.partition(".")[0] not in TOOLS and label_of(steps[0], steps[1]) not in (".__loader__", ".__spec__"):
        return 0
    own = [place for place, step in enumerate(steps) if _tool_of(step)]
    return own[-1] if own else 0


def _tool_of(thing: object) -> str:
    """``pytest``, if one of its objects is meant; not for its functions and frames, which have names."""
    package = module_of(type(thing)).partition(".")[0]
    return package.lstrip("_") if package in TOOLS else ""


def _root_of_a_tool(thing: object) -> Root:
    argument = (own_dict(thing) or {}).get("argname")  # of a fixture's definition
    fixture = f"({argument!r})" if type(argument) is str else ""
    return Root(f"{_tool_of(thing)}'s own ", f"{type_name(type(thing))}{fixture}")


def _beginning(thing: object, root: Root | None) -> _Words:
    if root is not None:
        return _Words(root.lead, root.expression, root.tail)
    name = namespace_name(thing)
    if name is not None:
        return _Words(_GLOBAL, name)
    if is_a(thing, type):
        return _Words(_ATTRIBUTE, class_name(thing), " (class attribute)")
    if type(thing) is LruCache:
        wrapped = (own_dict(thing) or {}).get("__wrapped__")
        return _Words("functools.lru_cache of ", _function_name(wrapped))
    if type(thing) is types.FunctionType:
        return _Words("function ", _function_name(thing), anonymous=True)
    return _Words("", type_name(type(thing)), anonymous=True)


def _step(words: _Words, before: object, holder: object, held: object) -> _Words:
    label = label_of(holder, held)
    if label == "._result" and is_a(holder, Future):
        label = ".result()"  # as whoever waits for it would write
    kept = "" if words.anonymous else words.place()
    suspended = generator_part(holder, "frame")
    if type(holder) is types.FrameType:
        tail = f" of frame {_where(holder, _failed_at(before, holder))}"
        if type(before) is types.TracebackType or is_a(before, BaseException):
            error = f" of {type_name(type(before))}" if is_a(before, BaseException) else ""
            tail += f", kept by the traceback{error}"
            if words.log_record:
                tail += f" in exc_info of the log record {words.log_record}"
            elif kept:
                tail += f" stored in {kept}"
        elif kept:
            tail += f", kept by {kept}"
        return _Words(_LOCAL, label, tail)
    if suspended is not None:
        kind = "coroutine" if type(holder) is types.CoroutineType else "generator"
        tail = f" of suspended {kind} {_where(suspended)}" + (f", kept by {kept}" if kept else "")
        return _Words(_LOCAL, label, tail)
    if type(holder) is types.FunctionType and not label.startswith((".", "…")):
        name = _function_name(holder)
        tail = f", stored in {kept}" if kept and kept != name else ""
        return _Words(f"closure of {name}, variable ", label, tail)
    record = (
        kept or "that nothing names" if is_a(holder, logging.LogRecord) and label == ".exc_info" else words.log_record
    )
    return _Words(words.lead, words.expression + label, words.tail, words.anonymous, record)


def _function_name(function: object) -> str:
    if type(function) is not types.FunctionType:
        return "a function" if function is None else type_name(type(function))
    module = function.__module__
    return f"{module}.{function.__qualname__}" if type(module) is str else function.__qualname__


def _where(frame: types.FrameType, line: int | None = None) -> str:
    """``load (file.py:33)``, with the path as one would type it here."""
    code = frame.f_code
    return f"{code.co_name} ({as_typed_here(code.co_filename)}:{line or frame.f_lineno or code.co_firstlineno})"


def _failed_at(holder: object, frame: types.FrameType) -> int | None:
    """The line of a frame that its traceback tells: the frame itself may have gone on since."""
    steps = tracebacks(holder) if is_a(holder, BaseException) else [holder]
    return next((s.tb_lineno for s in steps if type(s) is types.TracebackType and s.tb_frame is frame), None)
