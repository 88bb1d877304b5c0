"""The models a test names itself, with `watch`. Only their sizes are kept, so that watching cannot be a leak, and weak
references for whoever looks at what they hold.

What is watched belongs to the scope that was opened last: a test's, a block's, or that of a wider fixture while it is
set up. A wider fixture's scope outlives the test that asked for it first, and is outside of every test's.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_memleak.budget.model_sizes import ModelSizes, sizes_of


@dataclass(eq=False)
class Scope:
    """What was watched from its opening on, until a narrower one opened."""

    models: list[ModelSizes] = field(default_factory=list)
    modules: list[weakref.ref[Any]] = field(default_factory=list)
    """The same, but for what was described only: a path, a config."""
    width: int = 0
    """Of a fixture's scope; the greater, the further outside. 0: a test's or a block's."""
    uses: Callable[[], Collection[Scope]] | None = None
    """Of a test's scope: the fixtures' scopes that concern it. None leaves that to the scope around it."""


_lock = threading.Lock()
_everywhere = Scope(width=100)
"""What was watched outside of any test and fixture: in a conftest, in a script."""
_open: list[Scope] = []
"""Tests, blocks, and fixtures that are being set up: the last is the innermost."""
_kept: list[Scope] = []
"""Wider fixtures, from the end of their set-up to their finalizer."""


def watch(model: object) -> None:
    """Makes `model` the one that names in limits such as ``fp16_size`` speak of."""
    sizes = sizes_of(model)
    with _lock:
        scope = _open[-1] if _open else _everywhere
        scope.models.append(sizes)
        if hasattr(model, "named_modules"):
            scope.modules.append(weakref.ref(model))


def watched() -> list[ModelSizes]:
    """What the innermost scope that has any watches. Fixtures of the same width are one scope: none hides another."""
    return [model for scope in _meant() for model in scope.models]


def watched_modules(*, wider: bool = False) -> list[weakref.ref[Any]]:
    """The same, as modules, which may be gone. `wider`: only if no test and no block watches them itself."""
    return [module for scope in _meant() for module in scope.modules if scope.width or not wider]


def _meant() -> list[Scope]:
    with _lock:
        inner, kept = _open[::-1], list(_kept)
    # Not under the lock: it asks whoever opened the scope.
    uses = next((scope.uses for scope in inner if scope.uses is not None), None)
    if uses is not None:
        used = {id(scope) for scope in uses()}
        kept = [scope for scope in kept if id(scope) in used]
    for scope in inner:
        if scope.models:
            return [scope]
    for width in sorted({scope.width for scope in kept}):
        watching = [scope for scope in kept if scope.width == width and scope.models]
        if watching:
            return watching
    return [_everywhere]


@contextmanager
def scope(uses: Callable[[], Collection[Scope]] | None = None) -> Iterator[Scope]:
    """A test, or a block: what is watched inside is forgotten at the end, or kept by whoever has the scope."""
    opened = Scope(uses=uses)
    with _lock:
        _open.append(opened)
    try:
        yield opened
    finally:
        close_scope(opened)


def open_scope(width: int = 1) -> Scope:
    """The set-up of a wider fixture begins: what is watched from now on is the fixture's."""
    opened = Scope(width=width)
    with _lock:
        _open.append(opened)
    return opened


def keep_scope(scope: Scope) -> None:
    """The set-up has ended: what it watched stays watched, and what is watched from now on is somebody else's."""
    with _lock:
        if scope in _open:
            _open.remove(scope)
            _kept.append(scope)


def close_scope(scope: Scope) -> None:
    """The finalizer has run, or the set-up failed: nothing of it is watched any more. May be called again."""
    with _lock:
        for scopes in (_open, _kept):
            if scope in scopes:
                scopes.remove(scope)
