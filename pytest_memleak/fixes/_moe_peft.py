"""PEFT's LoRA on experts that a parametrization dequantizes: found, trained and left as if they were not quantized.

A parameter that `bitsandbytes.nn.parametrize` quantized is no parameter to PEFT any more. What goes wrong:

- `target_parameters` by the end of a name (``experts.down_proj``) finds it no more: of parametrized modules only full
  names are compared. `target_modules` that name experts, and ``"all-linear"``, become such names with transformers 5.
- `target_modules` that name it and did not become `target_parameters` find the list of its parametrizations, which is
  a module of the same name, and end in an error.
- A `ParamWrapper` adds its part for the length of a forward pass, with torch's cache of parametrized weights on. Of
  two, one in the other, the inner one first reads its parameter to learn its type: under the outer one's cache, which
  keeps what was read. The experts are then given that value, without the inner one's part, which has no effect and
  gets no gradient.
- A merge adds to what was dequantized for it, and is lost without a word.
- Since 0.21 the part that is added is of another class than the one that is removed, if the parameter has more
  parametrizations than that: it stays, and the next forward pass fails.

`patches` mends these once PEFT is imported, for parameters that are held in a type without fractions and for no
others; a merge is refused. The caller's config is left as it is.

Checked with PEFT 0.18.1, 0.19.1, 0.20.0, 0.21.0 and 0.21.2. The first two take no second adapter of parameters, and
0.19 no pattern and no ``"all-linear"`` for a mixture, quantized or not.
"""

from __future__ import annotations

import copy
import functools
import importlib
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from pytest_memleak.errors import BadInput
from pytest_memleak.upstream.imports import AfterImport
from pytest_memleak.upstream.patches import Patch

_LISTS = "parametrizations"
_WRAPPED = ".base_layer"


def patches() -> AfterImport:
    """What a fix that leaves quantized experts in models has to have in force while LoRA is attached and trained."""
    return AfterImport({"peft.tuners.lora.layer": patches_of})


def patches_of(layers: Any) -> Iterator[Patch]:
    """Of PEFT's module for LoRA's layers, and of the one that this has imported."""
    if (wrapper := getattr(layers, "ParamWrapper", None)) is None:
        return  # before 0.17 no parameters of other modules than PEFT's own are trained
    tuner = importlib.import_module("peft.tuners.tuners_utils").BaseTuner
    lists = _Lists()
    yield Patch(tuner, "inject_adapter", lists.known, parameters=["self", "model"])
    yield Patch(tuner, "_check_target_module_exists", lists.no_target, parameters=["key"])
    yield Patch(tuner, "_inject_parameters", _by_full_name, parameters=["self", "peft_config", "model"])
    yield Patch(wrapper, "_activate_lora", _read_anew, parameters=["self", "active_adapters"])
    yield Patch(wrapper, "_remove_parametrizations", _remove_the_last, parameters=["self"])
    yield Patch(wrapper, "merge", _refuse_to_merge, parameters=["self"])
    refuse_first = functools.partial(_refuse_before_merging, wrapper)
    yield Patch(tuner, "_check_merge_allowed", refuse_first, parameters=["self"])


def quantized_in(module: Any) -> dict[str, Any]:
    """The lists of parametrizations of a module's own parameters that are held in a type without fractions."""
    import torch

    lists = getattr(module, _LISTS, None)
    if not isinstance(lists, torch.nn.ModuleDict):
        return {}
    held = ((name, one, getattr(one, "original", None)) for name, one in lists.items())
    return {name: one for name, one, original in held if original is not None and not original.is_floating_point()}


class _Lists(threading.local):
    """The modules that are there only because a parameter is quantized, of the model that gets an adapter now."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()

    def known(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def inject_adapter(tuner: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            outer, self._names = self._names, frozenset(_names_of_lists(model))
            try:
                return found(tuner, model, *args, **kwargs)
            finally:
                self._names = outer

        return inject_adapter

    def no_target(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def exists(config: Any, key: str) -> Any:
            return False if key in self._names else found(config, key)

        return exists


def _names_of_lists(model: Any) -> Iterator[str]:
    for name, module in model.named_modules():
        for parameter, one in quantized_in(module).items():
            yield from (below for below, _ in one.named_modules(prefix=f"{name}.{_LISTS}.{parameter}".lstrip(".")))


def _by_full_name(found: Callable[..., Any]) -> Callable[..., Any]:
    """Parameters of modules with quantized ones are targeted by their full names, in copies of the config."""

    @functools.wraps(found)
    def inject(self: Any, peft_config: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        def targeting(targets: list[str]) -> list[str]:
            config = copy.copy(peft_config)
            config.target_parameters = targets
            names = found(self, config, model, *args, **kwargs) or ()  # before 0.21 it notes them elsewhere
            return [name.replace(_WRAPPED, "") for name in names]

        left = list(_meant(model, peft_config.target_parameters))
        if not left:
            return found(self, peft_config, model, *args, **kwargs)
        full = {name for _, names in left for name in names}
        done = targeting([target for target in peft_config.target_parameters if target not in full])
        # One of each module at a time, the last first: each new wrapper comes to lie within those that are there. By
        # itself PEFT has them in alphabetical order here, and in the module's order where nothing is quantized: an
        # adapter is trained on quantized experts to be merged into others, where the same place means the same one.
        while left:
            paths = {id(module): path for path, module in model.named_modules()}
            done += targeting([f"{paths[id(module)]}.{names.pop().rpartition('.')[2]}" for module, names in left])
            left = [(module, names) for module, names in left if names]
        return done

    return inject


def _meant(model: Any, targets: Any) -> Iterator[tuple[Any, list[str]]]:
    """Modules with quantized parameters, and the full names of those of their parameters that are targets."""
    for path, module in model.named_modules():
        if not (quantized := quantized_in(module)):
            continue
        # Of such a module PEFT compares only full names, also of the parameters that are not quantized.
        own = [*quantized, *(name for name, _ in module.named_parameters(recurse=False))]
        names = [f"{path.replace(_WRAPPED, '')}.{name}" for name in own]
        if names := [name for name in names if any(name == one or name.endswith(f".{one}") for one in targets)]:
            yield module, names


def _read_anew(found: Callable[..., Any]) -> Callable[..., Any]:
    """What was read before the wrapper added its part, or with the part of a pass that is over, is not read again."""

    @functools.wraps(found)
    @contextmanager
    def activate(self: Any, active_adapters: list[str]) -> Generator[None, None, None]:
        cache = importlib.import_module("torch.nn.utils.parametrize")
        base, name = self.get_base_layer(), self.parameter_name
        quantized = name in quantized_in(base)
        with found(self, active_adapters):
            try:
                if quantized:
                    cache._cache.pop((id(base), name), None)
                yield
            finally:
                if quantized:
                    cache._cache.pop((id(base), name), None)

    return activate


def _remove_the_last(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def remove(self: Any) -> None:
        one = quantized_in(self.get_base_layer()).get(self.parameter_name)
        if one is None or len(one) < 2:
            found(self)
        else:
            # Wrappers lie one in the other: whose pass ends first has added its part last.
            del one[-1]

    return remove


def _refuse_to_merge(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def merge(self: Any, *args: Any, **kwargs: Any) -> Any:
        _require_mergeable(self)
        return found(self, *args, **kwargs)

    return merge


def _refuse_before_merging(wrapper: type, found: Callable[..., Any]) -> Callable[..., Any]:
    """A model is merged layer by layer. Refused at the first experts, what came before them would be merged, and gone
    from the adapter that is to be saved.
    """

    @functools.wraps(found)
    def check(self: Any) -> Any:
        for module in self.model.modules():
            if isinstance(module, wrapper):
                _require_mergeable(module)
        return found(self)

    return check


def _require_mergeable(wrapped: Any) -> None:
    if wrapped.parameter_name in quantized_in(wrapped.get_base_layer()):
        raise BadInput(
            f"an adapter cannot be merged into {wrapped.parameter_name}, which is quantized: save it, and merge it "
            "into the model as it is without quantization"
        )
