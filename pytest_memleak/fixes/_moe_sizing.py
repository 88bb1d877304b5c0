"""What experts are going to be, for upstream to know before the first one is loaded: device_map="auto" goes by what
they take, and the allocator's warm-up, which otherwise asks a card for all of them at full precision.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from pytest_memleak.fixes._moe_reload import packed_in
from pytest_memleak.fixes._moe_settings import chosen, settings_of
from pytest_memleak.upstream.patches import Patch

_HALF_A_BYTE = 0.5


def sizing() -> Iterator[Patch]:
    quantizer = import_module("transformers.quantizers.quantizer_bnb_4bit").Bnb4BitHfQuantizer
    models: WeakKeyDictionary[nn.Module, _Model] = WeakKeyDictionary()
    telling = functools.partial(_telling, models)
    yield Patch(quantizer, "preprocess_model", functools.partial(_looking, models), parameters=["model", "kwargs"])
    yield Patch(quantizer, "param_element_size", telling, parameters=["model", "param_name"])
    keeping = functools.partial(_keeping, models)
    yield Patch(quantizer, "_convert_model_for_quantization", keeping, parameters=["model"])


class _Model:
    """One that is about to be loaded, and which of its experts are going to be in 4 bits: found when asked for, since
    what it is built under makes all tensors on meta.
    """

    def __init__(self, quantizer: Any, files: Iterable[str]) -> None:
        self._quantizer = quantizer
        self._files = tuple(files)
        self._names: frozenset[str] | None = None

    def packs(self, model: nn.Module, name: str) -> bool:
        if self._names is None:
            self._names = self._found(model)
        return name in self._names

    def _found(self, model: nn.Module) -> frozenset[str]:
        if self._quantizer.pre_quantized:
            return packed_in(self._files, model)
        settings = settings_of(self._quantizer.quantization_config, self._quantizer.modules_to_not_convert)
        return frozenset(one.name for one in chosen(model, settings))

    def has_packed(self, model: nn.Module) -> bool:
        return bool(self._quantizer.pre_quantized and self._found(model))


_Models = WeakKeyDictionary[nn.Module, _Model]


def _looking(models: _Models, found: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(found)

    @functools.wraps(found)
    def preprocess_model(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        files = given.get("kwargs", {}).get("checkpoint_files")
        models[given["model"]] = _Model(given["self"], files or ())
        return found(*args, **kwargs)

    return preprocess_model


def _keeping(models: _Models, found: Callable[..., Any]) -> Callable[..., Any]:
    """For a checkpoint in 4 bits upstream gives some models (Llama 4) other experts, a linear layer for each matrix.
    These have no place for what is packed.
    """

    @functools.wraps(found)
    def convert(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        known = models.get(model)
        return None if known is not None and known.has_packed(model) else found(self, model, *args, **kwargs)

    return convert


def _telling(models: _Models, found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def param_element_size(self: Any, model: Any, param_name: str, *args: Any, **kwargs: Any) -> float:
        size: float = found(self, model, param_name, *args, **kwargs)
        known = models.get(model)
        return _HALF_A_BYTE if known is not None and known.packs(model, param_name) else size

    return param_element_size
