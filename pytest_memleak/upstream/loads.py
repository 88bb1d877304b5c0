"""Which models a test built or loaded, and what they were: seen while it happens, without holding on to any of them.

A module is seen as its ``__init__`` begins. If it is no part and no mere view of others, it is a root, and is looked at
when it dies or when the window ends: by then it is complete, however it was put together. No weak reference is ever
taken on a tensor, because torch's ``swap_tensors`` refuses tensors that have one.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from pytest_memleak.budget.model_sizes import ModelSizes, of_module
from pytest_memleak.budget.names import NAMES
from pytest_memleak.budget.weights import all_on_meta
from pytest_memleak.upstream.family import Built, Family
from pytest_memleak.upstream.from_pretrained import Load, Loads
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.upstream.where import caller, shown


@dataclass(frozen=True)
class _Root:
    order: int
    sizes: ModelSizes
    loads: tuple[Load, ...] = ()
    """The loaded models inside it."""
    only_planned: bool = False
    """On the meta device: made to look at, not to use."""


@dataclass(frozen=True)
class Seen:
    """A root model, or one that a load returned, for whoever looks into it while it lives."""

    order: int
    title: str
    loads: tuple[int, ...] = ()
    """The order of the loaded models inside it, or of the load that it comes from."""
    loaded: bool = False


class Listener(Protocol):
    def model_loaded(self, seen: Seen, model: nn.Module) -> None:
        """Its load is about to return it."""

    def module_ends(self, seen: Seen | None, module: nn.Module) -> None:
        """Nobody holds it any more. `seen` is None for what is no model of its own. It must not be kept."""


class ModelObserver:
    """Around a test: the root models that were built or loaded, each once, in order."""

    listener: Listener | None = None

    def __init__(self) -> None:
        self._count = itertools.count()
        self._loads = Loads(lambda: next(self._count), self._loaded)
        self._family = Family()
        self._gone: list[_Root] = []
        self._pauses: list[tuple[int, int]] = []
        """First and last place in the order of what belongs to somebody else, such as a wider fixture."""
        self._paused_from: int | None = None
        self._undo = ExitStack()
        self._result: list[ModelSizes] | None = None

    def __enter__(self) -> ModelObserver:
        with ExitStack() as undo:
            self._undo = undo
            undo.enter_context(Patch(nn.Module, "__init__", self._watch_init))
            undo.enter_context(Patch(nn.Module, "__del__", self._watch_end, own=True))
            # transformers may be imported in the middle of a test: its base class is a subclass of torch's.
            undo.enter_context(Patch(nn.Module, "__init_subclass__", self._watch_subclasses, own=True))
            undo.callback(register_module_module_registration_hook(self._adopted).remove)
            base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
            if base is not None:
                self._watch_loads(base)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        self.conclude()
        self._family.clear()

    def pause(self) -> None:
        """What is built or loaded from now on is not the test's."""
        self._paused_from = next(self._count)

    def resume(self) -> None:
        if self._paused_from is not None:
            self._pauses.append((self._paused_from, next(self._count)))
        self._paused_from = None

    def conclude(self) -> None:
        """What comes is the same over again: the models are those seen so far."""
        self._result = self.models()

    def models(self) -> list[ModelSizes]:
        """The root models so far; once concluded, those of that time."""
        if self._result is not None:
            return list(self._result)
        living = self._family.roots()
        roots = [*self._gone, *(self._look(entry, module) for entry, module in living)]
        living.clear()
        inside = {load for root in roots for load in root.loads}
        roots += [
            _Root(load.order, load.sizes)
            for load in list(self._loads.done)
            if load.sizes is not None and load not in inside
        ]
        roots = [root for root in roots if self._counts(root.order)]
        real = [root for root in roots if not root.only_planned] or roots
        return [root.sizes for root in sorted(real, key=lambda root: root.order)]

    def living(self) -> list[tuple[Seen, nn.Module]]:
        """The models that are there now, in their order: roots, and loaded ones that are part of no other."""
        roots = [(self._seen(entry, module), module) for entry, module in self._family.roots()]
        inside = {order for seen, _ in roots for order in seen.loads}
        roots += [(_seen_load(load), model) for load, model in self._loads.living() if load.order not in inside]
        return sorted((one for one in roots if self._counts(one[0].order)), key=lambda one: one[0].order)

    def has_seen(self, module: nn.Module) -> bool:
        """Whether it, or a part of it, was built or loaded in the test's own time."""
        return any(self._family.knows(part) for part in nn.Module.modules(module))

    def expected(self) -> list[ModelSizes]:
        """The models that are being loaded, as they are going to be."""
        if self._paused_from is not None:
            return []
        loads = list(self._loads.under_way)
        return [load.expected for load in loads if load.expected is not None and self._counts(load.order)]

    def _counts(self, order: int) -> bool:
        if self._paused_from is not None and order > self._paused_from:
            return False
        return not any(first < order < last for first, last in self._pauses)

    def _watch_init(self, found: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(found)
        def __init__(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            if self._family.begins(module):
                self._loads.begins(module)
                # What a load builds is the load's, and what a wider fixture builds is as if it had been there before.
                if not self._loads.running() and self._paused_from is None:
                    self._family.add(module, next(self._count), caller(past="__init__"))
            found(module, *args, **kwargs)

        return __init__

    def _loaded(self, load: Load, model: nn.Module) -> None:
        if self._paused_from is None:
            self._family.add(model, load.order, ("", 0), loaded=True)
            if self.listener is not None:
                self.listener.model_loaded(_seen_load(load), model)

    def _adopted(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        self._family.adopted(parent, child)

    def _watch_end(self, found: Callable[[nn.Module], None] | None) -> Callable[[nn.Module], None]:
        def __del__(module: nn.Module) -> None:
            entry = self._family.ended(module)
            if entry is not None:
                self._gone.append(self._look(entry, module))
            if self.listener is not None:
                self.listener.module_ends(self._seen_at_end(entry, module), module)
            self._loads.ended(module)
            if found is not None:
                found(module)

        return __del__

    def _watch_subclasses(self, found: Callable[..., None] | None) -> Any:
        def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
            if found is None:
                super(nn.Module, cls).__init_subclass__(**kwargs)  # type: ignore[misc]
            else:
                found(cls, **kwargs)
            if cls.__name__ == "PreTrainedModel" and cls.__module__ == "transformers.modeling_utils":
                self._watch_loads(cls)

        return classmethod(__init_subclass__) if found is None else __init_subclass__

    def _watch_loads(self, base: Any) -> None:
        for patch in self._loads.patches(base):
            self._undo.enter_context(patch)

    def _seen(self, entry: Built, module: nn.Module) -> Seen:
        return Seen(entry.order, _title(entry, module), tuple(load.order for load in self._loads.inside(module)))

    def _seen_at_end(self, entry: Built | None, module: nn.Module) -> Seen | None:
        if entry is not None:
            seen = self._seen(entry, module)
        elif (load := self._loads.of(module)) is not None:
            seen = _seen_load(load)
        else:
            return None
        return seen if self._counts(seen.order) else None

    def _look(self, entry: Built, module: nn.Module) -> _Root:
        title = _title(entry, module)
        try:
            sizes = of_module(module, title=title, when="when it was last seen")
            loads = tuple(self._loads.inside(module))
            return _Root(entry.order, _with_what_loads_know(sizes, loads), loads, all_on_meta(module))
        # A module may be of any kind, half built, half gone; at its end an exception would only be printed and lost.
        except Exception as error:  # noqa: BLE001
            return _Root(
                entry.order, ModelSizes(title, {}, dict.fromkeys(NAMES, f"looking at it raised {error!r:.200}"))
            )


def _title(entry: Built, module: nn.Module) -> str:
    return f"{type(module).__name__} (built at {shown(entry.place)})"


def _seen_load(load: Load) -> Seen:
    return Seen(load.order, load.title, (load.order,), loaded=True)


def _with_what_loads_know(sizes: ModelSizes, loads: tuple[Load, ...]) -> ModelSizes:
    """A wrapper's sizes, better where a load inside it has seen more: another quantizer, the checkpoint's dtype."""
    known = [load.sizes for load in loads if load.sizes is not None]
    if len(known) == 1 and _adds_nothing(sizes, known[0]):
        return known[0]
    for inner in known:
        theirs, mine = inner.terms.get("largest_param"), sizes.terms.get("largest_param")
        if theirs is not None and mine is not None and theirs.bytes > mine.bytes:
            sizes = sizes.with_largest(theirs)
    return sizes


def _adds_nothing(wrapper: ModelSizes, inner: ModelSizes) -> bool:
    mine, theirs = wrapper.terms.get("fp16_size"), inner.terms.get("fp16_size")
    # A wrapper that cannot be told has a quantizer inside that only its load understood.
    return mine is None or (theirs is not None and mine.bytes == theirs.bytes)
