"""Dequantized weights that stay: torch's cache of parametrized weights is switched on and never off again.

bitsandbytes dequantizes parameters that are no Linear's, such as the experts of a mixture, when they are read
(``bitsandbytes.nn.parametrize``). So that one forward pass of a module does so once, it counts
``torch.nn.utils.parametrize._cache_enabled`` up before and down after: while it is not 0, torch keeps all that is
computed, by the module's id, in ``_cache``. In 0.48 and 0.49 the hook that counts down is an ordinary one, which torch
leaves out if the forward pass raises. Non-reentrant checkpointing raises on purpose, to end a recomputation when it has
all that it needs: every step leaves the count higher, and the cache is never emptied again. 0.50 asks for its hook to
be called always (`always_call=True`), and does not count below 0.

The fix does the same for what is quantized while it is in force; the bug takes the request away. Hooks that are on a
module already stay as they are: apply the fix before anything is quantized.

Checked with bitsandbytes 0.48.0, 0.49.2 and 0.50.2, torch 2.13. Before 0.48 there was no such parametrization.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch, Unrecognised

_HOOKS = "_register_parametrization_hooks"


def _always_called() -> list[Patch]:
    """The hook that counts down runs also where a forward pass raises, and never below 0."""
    quantizing, cache = _modules()
    _asks_for_always(quantizing)

    def clamped(found: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(found)
        def count_down(module: Any, inputs: Any, output: Any) -> None:
            # A hook that is always called is called also where a hook before the one that counts up has raised.
            if cache._cache_enabled > 0:
                found(module, inputs, output)

        return count_down

    count_down = Patch(quantizing, "_disable_parametrization_cache", clamped, parameters=["module", "inputs", "output"])
    return [count_down, _registering(quantizing, always=True)]


def _called_on_success() -> list[AbstractContextManager[object]]:
    """The hook that counts down does not run where a forward pass raises."""
    quantizing, cache = _modules()
    if not _asks_for_always(quantizing):
        return []
    return [_CacheAsItWas(cache), _registering(quantizing, always=False)]


class _Relay:
    """A module to those who register hooks on it: a forward hook is always called, or only where nothing raises."""

    def __init__(self, module: Any, always: bool) -> None:
        self._module = module
        self._always = always
        self.asked_for_always: list[bool] = []

    def register_forward_hook(self, hook: Any, **how: Any) -> Any:
        self.asked_for_always.append(how.get("always_call", False))
        return self._module.register_forward_hook(hook, **{**how, "always_call": self._always})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _registering(quantizing: Any, always: bool) -> Patch:
    def register(found: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(found)
        def hooks(module: Any, param_name: str) -> None:
            found(_Relay(module, always), param_name)

        return hooks

    return Patch(quantizing, _HOOKS, register, parameters=["module", "param_name"])


def _asks_for_always(quantizing: Any) -> bool:
    """What is done to a module that nobody needs tells whether hooks are registered as they are known to be."""
    import torch

    tried = _Relay(torch.nn.Module(), always=True)
    name = f"{quantizing.__name__}.{_HOOKS}"
    try:
        getattr(quantizing, _HOOKS)(tried, "weight")
    except (AttributeError, KeyError, TypeError) as error:
        raise Unrecognised(f"{name} of this release does not register its hooks as it did: {error}") from error
    if len(tried.asked_for_always) != 1:
        raise Unrecognised(f"{name} of this release registers {len(tried.asked_for_always)} forward hooks, and not 1")
    return tried.asked_for_always[0]


class _CacheAsItWas:
    """What the bug leaves in the cache must not outlive it: every later test of the process would leak as well."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._enabled = 0

    def __enter__(self) -> None:
        self._enabled = self._cache._cache_enabled

    def __exit__(self, *error: object) -> None:
        self._cache._cache_enabled = self._enabled
        if not self._enabled:
            self._cache._cache = {}

    def __str__(self) -> str:
        return f"{self._cache.__name__}._cache (emptied at the end)"


def _modules() -> tuple[Any, Any]:
    """What quantizes, and torch's module with the cache."""
    try:
        quantizing = importlib.import_module("bitsandbytes.nn.parametrize")
    except ModuleNotFoundError as error:
        raise Unrecognised(
            f"parametrize_cache is about parametrized weights, which this release does not have: {error}"
        ) from None
    cache = importlib.import_module("torch.nn.utils.parametrize")
    if missing := [name for name in ("_cache", "_cache_enabled") if not hasattr(cache, name)]:
        raise Unrecognised(f"{cache.__name__} of this release has no {', '.join(missing)}")
    return quantizing, cache


FIX = Fix(
    "parametrize_cache",
    mends="experts quantized by bitsandbytes stay in full precision after a step with non-reentrant checkpointing",
    links=[
        "https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2005",
        "https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1999",
    ],
    affected={"bitsandbytes": ">=0.48,<0.50"},
    patches=_always_called,
    bugs={"on_success": _called_on_success},
)
