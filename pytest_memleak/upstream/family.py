"""Which of the modules built in a window is a model of its own, and which is a part, or only a view, of another.

``layers[:n]`` builds a new module around old ones, as transformers does in every forward pass. Such a module has no
parameter that was not another's before, and is no model. A wrapper that is given a model, such as `DataParallel`,
stands for that model as long as it lives; if it goes and the model stays, the model stands for itself again.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from pytest_memleak.budget.weights import has_weights
from pytest_memleak.upstream.where import Place


@dataclass(eq=False)
class Built:
    """A module whose beginning was seen."""

    order: int
    ref: weakref.ref[nn.Module]
    place: Place
    loaded: bool = False
    """A load made it, which knows it better."""
    homes: dict[int, weakref.ref[nn.Module]] = field(default_factory=dict)
    """The modules that adopted it, the first one first. One that ended as a model leaves its mark on its parts."""
    over: bool = False
    """It has ended in a cycle, whose parts may do so before what has them, and asks for them then."""


def _references(parts: Mapping[str, object]) -> list[int]:
    return [sys.getrefcount(part) for part in parts.values()]


_ALONE = _references({"only": object()})[0]
"""What is counted for something that nothing else holds; that depends on the interpreter."""


class Family:
    """The modules of one window."""

    def __init__(self) -> None:
        # Re-entrant: a collection may end a module in the very thread that holds it.
        self._lock = threading.RLock()
        self._built: dict[int, Built] = {}

    def begins(self, module: nn.Module) -> bool:
        """Whether nobody has begun it yet. What was known at its address has ended, whether that was seen or not."""
        with self._lock:
            entry = self._built.get(id(module))
            if entry is not None and entry.ref() is module:
                return False
            self._built.pop(id(module), None)
            return True

    def add(self, module: nn.Module, order: int, place: Place, loaded: bool = False) -> None:
        with self._lock:
            self._built[id(module)] = Built(order, weakref.ref(module), place, loaded)

    def knows(self, module: nn.Module) -> bool:
        entry = self._of(module)
        return entry is not None and not entry.over

    def adopted(self, parent: nn.Module, child: nn.Module | None) -> None:
        with self._lock:
            entry = self._of(child)
            if entry is not None and not entry.over:
                entry.homes[id(parent)] = weakref.ref(parent)

    def ended(self, module: nn.Module) -> Built | None:
        """Forgets a module at its end; its entry if it was a model of its own."""
        with self._lock:
            entry = self._of(module)
            if entry is None or entry.over:
                return None
            survivors: list[nn.Module] = []
            root = not entry.homes and not entry.loaded and not _is_parameter_container(module)
            # Several models that were put together to one are that one also if its parts stay.
            goes = root and (self._goes_along(module, entry.order, survivors, {id(module)}) or len(survivors) > 1)
            for child in _children(module).values():
                part = self._of(child)
                if part is not None and (len(part.homes) > 1 or (root and not goes)):
                    part.homes.pop(id(module), None)
            entry.over = entry.ref() is None
            if not entry.over:
                del self._built[id(module)]
            return entry if goes else None

    def roots(self) -> list[tuple[Built, nn.Module]]:
        """The models that live, in no order; the caller holds them now."""
        with self._lock:
            found = [(entry, entry.ref()) for entry in self._built.values() if not entry.homes and not entry.loaded]
            return [
                (entry, module)
                for entry, module in found
                if module is not None and not _is_parameter_container(module) and self._owns(module, {id(module)})
            ]

    def clear(self) -> None:
        with self._lock:
            self._built.clear()

    def _of(self, module: nn.Module | None) -> Built | None:
        entry = self._built.get(id(module))
        # Where a whole cycle is collected, weak references are cleared before the objects end.
        return entry if entry is not None and entry.ref() in (module, None) else None

    def _owns(self, module: nn.Module, seen: set[int]) -> bool:
        """Whether it has a parameter that was no other living module's before."""
        if _own_parameters(module):
            return True
        for child, entry in self._parts(module, seen):
            if has_weights(child) if entry.loaded else self._owns(child, seen):
                return True
        return False

    def _goes_along(self, module: nn.Module, since: int, survivors: list[nn.Module], seen: set[int]) -> bool:
        """Whether a parameter of its own ends with it. What was given to it, and is held elsewhere, survives."""
        if _own_parameters(module):
            return True
        children = _children(module)
        held = {
            id(child) for child, count in zip(children.values(), _references(children), strict=True) if count > _ALONE
        }
        for child, entry in self._parts(module, seen):
            if id(child) in held and entry.order < since and entry.ref() is not None:
                survivors += [child] if has_weights(child) else []
            elif has_weights(child) if entry.loaded else self._goes_along(child, since, survivors, seen):
                return True
        return False

    def _parts(self, module: nn.Module, seen: set[int]) -> Iterator[tuple[nn.Module, Built]]:
        """The children whose home this is, and not another module that had them before."""
        for child in list(_children(module).values()):
            entry = self._of(child)
            if child is None or entry is None or id(child) in seen:
                continue
            home = next((home for ref in entry.homes.values() if (home := ref()) is not None), None)
            if home is module or (home is None and id(module) in entry.homes):
                seen.add(id(child))
                yield child, entry


def _children(module: nn.Module) -> Mapping[str, nn.Module | None]:
    # A module whose __init__ failed early has no such dictionary.
    found: Mapping[str, nn.Module | None] = vars(module).get("_modules", {})
    return found


def _own_parameters(module: nn.Module) -> bool:
    return any(parameter is not None for parameter in vars(module).get("_parameters", {}).values())


def _is_parameter_container(module: nn.Module) -> bool:
    """A slice of one cannot be told from a new one, and neither computes anything."""
    return type(module) in (nn.ParameterList, nn.ParameterDict)
