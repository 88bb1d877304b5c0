"""The models a test names itself, with `watch`. Only their sizes are kept, so that watching cannot be a leak."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pytest_memleak.budget.model_sizes import ModelSizes, sizes_of


@dataclass(eq=False)
class Scope:
    """What was watched from its opening on, until a narrower one opened."""

    models: list[ModelSizes] = field(default_factory=list)


_lock = threading.Lock()
_scopes: list[Scope] = [Scope()]


def watch(model: object) -> None:
    """Makes `model` the one that names in limits such as ``fp16_size`` speak of."""
    sizes = sizes_of(model)
    with _lock:
        _scopes[-1].models.append(sizes)


def watched() -> list[ModelSizes]:
    """What the innermost scope that has any watches."""
    with _lock:
        return next((list(scope.models) for scope in reversed(_scopes) if scope.models), [])


@contextmanager
def scope() -> Iterator[Scope]:
    """A test, or a fixture: what is watched inside is forgotten at the end, or kept by whoever has the scope."""
    opened = Scope()
    with _lock:
        _scopes.append(opened)
    try:
        yield opened
    finally:
        with _lock:
            _scopes.remove(opened)
