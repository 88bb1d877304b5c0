"""What the fix `warmup_guard` and its bug put around transformers' allocator warm-up."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pytest_memleak.fixes.warmup_guard import RESERVE, SMALL_CARD, mode
from pytest_memleak.room import room_of
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.upstream.targets import as_accelerator
from pytest_memleak.upstream.warmup import MODULE, WARM_UP, device_map_of

GUARDED = "__allocator_warmup_guard__"
"""On the guard itself: one is enough, whoever put it there."""

_log = logging.getLogger(__name__)


def guarded(found: Callable[..., Any]) -> Callable[..., Any]:
    if is_guarded(found):
        return found

    @functools.wraps(found)
    def caching_allocator_warmup(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        wanted = mode(os.environ)
        if wanted == "off":
            return None
        if wanted == "on":
            return found(*args, **kwargs)
        fitting = where_it_fits(args, kwargs)
        return found(*_with_map(args, fitting), **kwargs | _named_map(kwargs, fitting)) if fitting else None

    setattr(caching_allocator_warmup, GUARDED, True)
    return caching_allocator_warmup


def is_guarded(function: Any) -> bool:
    """Whether a guard is on it, maybe below other patches."""
    while function is not None:
        if getattr(function, "__dict__", {}).get(GUARDED):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def where_it_fits(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a call's device map the parameters of devices that can be warmed up. The rest were not warmed up anyway."""
    targets = {name: as_accelerator(target) for name, target in device_map_of(args, kwargs).items()}
    devices = list(dict.fromkeys(device for device in targets.values() if device is not None))
    needs = needs_of(args, kwargs, targets)
    fitting = [device for device in devices if fits(device, needs.get(device, 0))]
    return {name: target for name, target in device_map_of(args, kwargs).items() if targets[name] in fitting}


def fits(device: torch.device, need: int) -> bool:
    """Whether a request of so many bytes leaves enough. Where nobody knows, it is made as without a guard."""
    try:
        room = room_of(device)
    except (RuntimeError, NotImplementedError, AttributeError, AssertionError) as error:
        _log.warning("%s does not tell its memory, and is warmed up whatever it has: %s", device, error)
        return True
    if room is None:
        _log.warning("%s does not tell its memory, and is warmed up whatever it has", device)
        return True
    card = room.total if room.cap is None else min(room.total, room.cap)
    return card > SMALL_CARD and need <= room.bytes - RESERVE


def needs_of(
    args: Sequence[Any], kwargs: Mapping[str, Any], targets: Mapping[str, torch.device | None]
) -> dict[torch.device, int]:
    """What a model's parts take of each device: the most that a warm-up asks for, before it looks at any memory."""
    model = kwargs["model"] if "model" in kwargs else args[0]
    places = {name: device for name, device in targets.items() if device is not None}
    third = args[2] if len(args) > 2 else kwargs.get("hf_quantizer", kwargs.get("factor"))
    counted = getattr(sys.modules[MODULE], "get_total_byte_count", None)
    if counted is not None:  # since 5.0
        return {device: int(count) for device, count in counted(model, places, third).items()}
    tied, bytes_ = _tied(model), dict.fromkeys(places.values(), 0)
    for name, device in places.items():
        if name not in tied:
            weight = _weight(model, third, name)
            bytes_[device] += weight.numel() * weight.element_size()
    factor = _factor(third)
    return {device: count // factor * 2 for device, count in bytes_.items()}


def _weight(model: Any, quantizer: Any, name: str) -> torch.Tensor:
    renamed = getattr(quantizer, "update_param_name", None)
    weight: torch.Tensor = model.get_parameter_or_buffer(renamed(name) if renamed is not None else name)
    return weight


def _tied(model: Any) -> frozenset[str]:
    """In releases before 5.0, which count them once since 4.51; counted twice, a warm-up is only left out earlier."""
    found = getattr(sys.modules[MODULE], "_get_tied_weight_keys", None)
    return frozenset(found(model)) if found is not None else frozenset()


def _factor(third: Any) -> int:
    """Bytes that two of the request stand for: the third argument was that number in 4.51, and tells it since."""
    if isinstance(third, int):
        return third
    told = getattr(third, "get_accelerator_warm_up_factor", None)
    return int(told()) if told is not None else 2


def _with_map(args: Sequence[Any], device_map: Mapping[str, Any]) -> list[Any]:
    return [*args[:1], device_map, *args[2:]] if len(args) > 1 else list(args)


def _named_map(kwargs: Mapping[str, Any], device_map: Mapping[str, Any]) -> dict[str, Any]:
    return {"expanded_device_map": device_map} if "expanded_device_map" in kwargs else {}


def told_that_all_is_free(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def caching_allocator_warmup(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with contextlib.ExitStack() as undo:
            for module in (torch.cuda, torch.xpu):
                if hasattr(module, "mem_get_info"):
                    undo.enter_context(Patch(module, "mem_get_info", _all_free))
            return found(*args, **kwargs)

    return caching_allocator_warmup


def _all_free(found: Callable[..., Any]) -> Callable[..., tuple[int, int]]:
    @functools.wraps(found)
    def mem_get_info(*args: Any, **kwargs: Any) -> tuple[int, int]:
        free, total = found(*args, **kwargs)
        # The warm-up alone is deceived: whoever watches it reads what there is.
        asks = sys._getframe(1).f_code.co_name == WARM_UP
        return (total if asks else free), total

    return mem_get_info
