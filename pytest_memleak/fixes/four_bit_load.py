"""Full-precision weights that pile up while a model is quantized on the way: in 4 bits, in 8, or any other.

transformers 5.0 to 5.3 hand every tensor of a checkpoint to a pool of threads before the first one is quantized. The
threads put them on the card as fast as they can read, quantizing takes longer, and what is done and not yet fetched
waits there at its full size. 5.4 makes no pool for such loads: each tensor is read when its turn comes.

The fix does the same: a load that quantizes gets no pool. The bug gives such a load a pool once more. Both go by the
load, and not by the process: other loads, in other threads too, keep the pool that they had, and so do loads of what
was quantized before. HF_DEACTIVATE_ASYNC_LOAD is left alone, and means what it means.

Checked with transformers 5.0.0 to 5.4.0, 5.6.2 and 5.23.0. Before 5.0 there was no such loader.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

from packaging.specifiers import SpecifierSet

from pytest_memleak.fixes._loader import loader_and_its_caller
from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch, Unrecognised

_AFFECTED = ">=5.0,<5.4"
_ASKED = ("ThreadPoolExecutor", "GLOBAL_WORKERS", "is_env_variable_true")
"""What the loader's own module has, and a load with the bug uses."""


def _no_pool() -> list[Patch]:
    """Loads that quantize on the way read a tensor when its turn comes."""
    loader, loading = loader_and_its_caller("four_bit_load")
    loads = _Loads()

    def pools(found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found, updated=())  # a class: its attributes are not a function's
        def pool(*args: Any, **kwargs: Any) -> Any:
            return None if loads.innermost.quantizes else found(*args, **kwargs)

        return pool

    return [_follow(loading, loads), Patch(loader, "ThreadPoolExecutor", pools, parameters=["max_workers"])]


def _pool() -> list[Patch]:
    """Loads that quantize on the way hand all their tensors to a pool of threads first."""
    loader, loading = loader_and_its_caller("four_bit_load")
    if SpecifierSet(_AFFECTED, prereleases=True).contains(importlib.import_module("transformers").__version__):
        return []
    if missing := [name for name in _ASKED if not hasattr(loader, name)]:
        raise Unrecognised(f"{loader.__name__} of this release has no {', '.join(missing)}")
    loads = _Loads()

    def spawns(found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def spawn(thread_pool: Any, *args: Any, **kwargs: Any) -> Any:
            if thread_pool is None:
                thread_pool = loads.innermost.pool(loader)
            return found(thread_pool, *args, **kwargs)

        return spawn

    names = ["spawn_materialize"]
    if hasattr(loader, "spawn_tp_materialize"):  # of tensor parallel loads, as long as those had one of their own
        names.append("spawn_tp_materialize")
    return [_follow(loading, loads), *(Patch(loader, name, spawns, parameters=["thread_pool"]) for name in names)]


class _Load:
    """One run of the loader, or none."""

    def __init__(self, config: Any = None) -> None:
        quantizer = config.hf_quantizer if config is not None else None
        self.quantizes: bool = quantizer is not None and not quantizer.pre_quantized
        self._offloads = config is not None and "disk" in (config.device_map or {}).values()
        self._pool: Any = None

    def pool(self, loader: Any) -> Any:
        """What 5.3 would have made at the start of a load that quantizes, and None for others."""
        # Its two reasons to do without. Asked for through the loader's own name, so that a fix is asked as well.
        if not self.quantizes or self._offloads or loader.is_env_variable_true("HF_DEACTIVATE_ASYNC_LOAD"):
            return None
        if self._pool is None:
            self._pool = loader.ThreadPoolExecutor(max_workers=loader.GLOBAL_WORKERS)
        return self._pool

    def end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


class _Loads(threading.local):
    """What the present thread is loading."""

    def __init__(self) -> None:
        self.innermost = _Load()


def _follow(loading: Any, loads: _Loads) -> Patch:
    """While entered, `loads` knows about each thread's load."""

    def follow(found: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(found)

        @functools.wraps(found)
        def convert_and_load_state_dict_in_model(*args: Any, **kwargs: Any) -> Any:
            outer = loads.innermost
            loads.innermost = load = _Load(signature.bind(*args, **kwargs).arguments["load_config"])
            try:
                return found(*args, **kwargs)
            finally:
                loads.innermost = outer
                load.end()

        return convert_and_load_state_dict_in_model

    # Under the name by which models call it.
    name = "convert_and_load_state_dict_in_model"
    return Patch(loading, name, follow, parameters=["model", "state_dict", "load_config"])


FIX = Fix(
    "four_bit_load",
    mends="full-precision weights pile up on the card while a model is quantized as it is loaded",
    links=[
        "https://github.com/huggingface/transformers/pull/44728",
        "https://github.com/huggingface/transformers/pull/44576",
    ],
    affected={"transformers": _AFFECTED},
    patches=_no_pool,
    bugs={"pool": _pool},
)
