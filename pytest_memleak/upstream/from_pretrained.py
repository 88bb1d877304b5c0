"""transformers' loads, seen at their start, when the model has its shapes and no memory yet, and at their return.

Checked with transformers 4.50.0 and 5.23.0: both have `PreTrainedModel.from_pretrained`, which calls
`HfQuantizer.preprocess_model` (layers are replaced) and then `_load_pretrained_model` (weights are read).
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from pytest_memleak.budget.checkpoint import Stored, read_headers
from pytest_memleak.budget.model_sizes import ModelSizes, of_module, of_weights
from pytest_memleak.budget.names import NAMES
from pytest_memleak.budget.seen import remember
from pytest_memleak.budget.weights import Weight, expected_bytes, held_bytes, weights_of
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.upstream.where import caller, shown


@dataclass(eq=False)
class Load:
    """One call of from_pretrained."""

    order: int
    title: str
    weights: list[Weight] | None = None
    sizes: ModelSizes | None = None
    """None until the load has come so far that the model's shapes are known."""
    expected: ModelSizes | None = None
    """The same with the final size that is to be expected, from when its weights begin to be read."""


class Loads:
    """The loads of a window, the outermost ones; what a load loads on its way is a part of it."""

    def __init__(self, order: Callable[[], int], loaded: Callable[[Load, nn.Module], None]) -> None:
        self.done: list[Load] = []
        self.under_way: list[Load] = []
        """Of all threads."""
        self._order = order
        self._loaded = loaded
        self._models: dict[int, tuple[weakref.ref[nn.Module], Load]] = {}
        self._thread = threading.local()

    def patches(self, base: Any) -> list[Patch]:
        """What has to be entered to see the loads of `base`, transformers' PreTrainedModel."""
        quantizer = import_module("transformers.quantizers.base").HfQuantizer
        return [
            Patch(base, "from_pretrained", self._from_pretrained, parameters=["pretrained_model_name_or_path"]),
            Patch(base, "_load_pretrained_model", self._read_weights, parameters=["model", "checkpoint_files"]),
            Patch(quantizer, "preprocess_model", self._quantize, parameters=["model"]),
        ]

    def running(self) -> list[Load]:
        """Those this thread is in, the outermost first."""
        loads: list[Load] = self._thread.__dict__.setdefault("loads", [])
        return loads

    def inside(self, module: nn.Module) -> list[Load]:
        """The loads whose models are parts of `module`, or are it."""
        return [load for part in nn.Module.modules(module) if (load := self.of(part)) is not None]

    def of(self, module: nn.Module) -> Load | None:
        """The load that returned this very model, which may be about to end."""
        ref, load = self._models.get(id(module), (None, None))
        # Where a whole cycle is collected, weak references are cleared before the objects end.
        return load if ref is not None and ref() in (module, None) else None

    def begins(self, module: nn.Module) -> None:
        """If another model was at its address, that one is gone, whether its end was seen or not."""
        ref, _ = self._models.get(id(module), (None, None))
        if ref is not None and ref() is not module:
            del self._models[id(module)]

    def ended(self, module: nn.Module) -> None:
        """Parts of a cycle may end before what has them, which asks for them then: those go when another one begins."""
        ref, _ = self._models.get(id(module), (None, None))
        if ref is not None and ref() is module:
            del self._models[id(module)]

    def living(self) -> list[tuple[Load, nn.Module]]:
        """The loaded models that are still there; the caller holds them now."""
        found = [(load, ref()) for ref, load in list(self._models.values())]
        return [(load, model) for load, model in found if model is not None]

    def _from_pretrained(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            with self._load(cls) as load:
                result = found(cls, *args, **kwargs)
                model = result[0] if isinstance(result, tuple) else result
                if not self.running()[1:] and isinstance(model, nn.Module):
                    self._returned(load, model)
                return result

        return from_pretrained

    @contextmanager
    def _load(self, cls: type) -> Iterator[Load]:
        load = Load(self._order(), f"{cls.__name__} (loaded at {shown(caller())})")
        running = self.running()
        running.append(load)
        if not running[1:]:
            self.under_way.append(load)
        try:
            yield load
        except BaseException as error:
            if load.sizes is not None:
                load.sizes = load.sizes.without("final_size", f"its load ended with {type(error).__name__}")
            raise
        finally:
            running.pop()
            if not running:
                self.under_way.remove(load)
            # Before the shapes are known there was no model: the path was wrong, a package was missing.
            if not running and load.sizes is not None:
                self.done.append(load)

    def _quantize(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def preprocess_model(quantizer: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._started(model, {})  # the last moment before its layers are replaced
            return found(quantizer, model, *args, **kwargs)

        return preprocess_model

    def _read_weights(self, found: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(found)

        @functools.wraps(found)
        def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            self._started(given["model"], _headers(given.get("checkpoint_files")))
            self._expect(given["model"])
            return found(*args, **kwargs)

        return _load_pretrained_model

    def _started(self, model: nn.Module, stored: dict[str, Stored]) -> None:
        if not self.running():
            return  # a private step of transformers, used by itself
        load = self.running()[-1]
        try:
            if load.weights is None:
                load.weights = weights_of(model)
            load.sizes = of_weights(load.weights, load.title, stored)
        except Inconclusive as error:
            load.sizes = ModelSizes(load.title, {}, dict.fromkeys(NAMES, str(error)))
        load.sizes = load.sizes.without("final_size", "its load has not returned")

    def _expect(self, model: nn.Module) -> None:
        """Quantized layers have replaced others by now, and nothing is loaded yet."""
        load = self.running()[-1] if self.running() else None
        if load is None or load.sizes is None:
            return
        try:
            load.expected = load.sizes.with_final(expected_bytes(model), "as its load began")
        except Exception:  # noqa: BLE001 - a load is not to fail for a guess; without one, nobody looks on the way
            load.expected = None

    def _returned(self, load: Load, model: nn.Module) -> None:
        when = "when its load returned"
        # Without sizes it was loaded in a way that leaves out the steps that are watched.
        sizes = load.sizes or of_module(model, title=load.title, when=when)
        load.sizes = sizes.with_final(held_bytes(model), when)
        self._models[id(model)] = (weakref.ref(model), load)
        self._loaded(load, model)
        remember(model, load.sizes)


def _headers(files: object) -> dict[str, Stored]:
    paths = [Path(str(file)) for file in files] if isinstance(files, list | tuple) else []
    try:
        return read_headers(paths) if all(path.suffix == ".safetensors" for path in paths) else {}
    except BadInput:
        return {}  # transformers is about to read the same file, and says what is wrong with it
