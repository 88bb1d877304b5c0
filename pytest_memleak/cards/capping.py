"""A cap on a real card: what the caching allocator may reserve, and what the program is told of the card's size.

torch's own limit (`set_per_process_memory_fraction`) refuses, but tells nobody: `mem_get_info` and the device's
properties go on naming the whole card, and frameworks size their requests by them. So a cap is *told* as well, at the
lowest place that Python reaches: names imported earlier (`from torch.cuda import mem_get_info`) are told too. The limit
itself is not: to the program it is a card of that size, of which it may set a fraction of its own.
The only file of this room that touches torch's private API; checked on torch 2.11 (CUDA).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.errors import Unavailable
from pytest_memleak.plan import Cap
from pytest_memleak.upstream.patches import Patch


@contextlib.contextmanager
def capped(cap: Cap, devices: range) -> Iterator[None]:
    """Every device of `devices` is a card of that size until the end, and what it was before afterwards."""
    with enforced(cap, devices) as rooms, contextlib.ExitStack() as undo:
        if cap.told:
            _tell(cap, rooms, undo)
        yield


@contextlib.contextmanager
def enforced(cap: Cap, devices: range) -> Iterator[dict[int, int]]:
    """The same without a word to the program; gives what each device's allocator may reserve."""
    torch.cuda.init()
    with contextlib.ExitStack() as undo:
        yield {index: _enforced(cap, index, undo) for index in devices}


def fraction_of(limit: int, total: int) -> float:
    """The fraction that torch, which multiplies and truncates, turns into exactly `limit` bytes."""
    fraction = limit / total
    while int(fraction * total) < limit:
        fraction = math.nextafter(fraction, 2.0)
    return min(fraction, 1.0)


def _enforced(cap: Cap, index: int, undo: contextlib.ExitStack) -> int:
    """Limits what the device's allocator may reserve; returns that limit."""
    total = torch.cuda.mem_get_info(index)[1]
    if cap.bytes > total:
        raise Unavailable(
            f"{cap.source}: a cap of {format_size(cap.bytes)} does not fit cuda:{index}, which has "
            f"{format_size(total)}: ask for less, or run it on a larger card"
        )
    # What the allocator keeps for reuse counts as reserved: without this, an earlier test's cache would fill the card.
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved(index)
    if held > cap.bytes:
        raise Unavailable(
            f"{cap.source}: {format_size(held)} of cuda:{index} are held before the test begins, more than its cap of "
            f"{format_size(cap.bytes)}: release what wider fixtures or earlier tests hold, or raise the cap"
        )
    limit = cap.bytes if cap.free is None else min(cap.bytes, held + cap.free)
    before = torch.cuda.get_per_process_memory_fraction(index)
    undo.callback(torch.cuda.set_per_process_memory_fraction, before, index)
    torch.cuda.set_per_process_memory_fraction(fraction_of(limit, total), index)
    return limit


def _tell(cap: Cap, limits: dict[int, int], undo: contextlib.ExitStack) -> None:
    def told_memory(real: Callable[..., Any]) -> Callable[..., Any]:
        def memory_info(device: int) -> Any:
            free, total = real(device)
            limit = limits.get(_index(device))
            if limit is None:
                return free, total
            room = limit - torch.cuda.memory_reserved(device)
            return max(0, min(free, room)), cap.bytes

        return memory_info

    def told_properties(real: Callable[..., Any]) -> Callable[..., Any]:
        def properties(device: int) -> Any:
            true = real(device)
            return CappedProperties(true, cap.bytes) if _index(device) in limits else true

        return properties

    fractions: dict[int, float] = {}

    def told_fraction(real: Callable[..., Any]) -> Callable[..., Any]:
        def fraction(device: int) -> float:
            return fractions.get(_index(device), 1.0) if _index(device) in limits else real(device)

        return fraction

    def bounded_fraction(real: Callable[..., Any]) -> Callable[..., Any]:
        def set_fraction(fraction: float, device: int) -> None:
            index = _index(device)
            if index in limits:  # a fraction of the card that the program is told of, and never more than it has
                fractions[index] = fraction
                fraction = fraction_of(min(limits[index], int(fraction * cap.bytes)), totals[index])
            real(fraction, device)

        return set_fraction

    totals = {index: torch.cuda.mem_get_info(index)[1] for index in limits}
    places: list[tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = [
        (torch.cuda.cudart(), "cudaMemGetInfo", told_memory),
        (torch._C, "_accelerator_getMemoryInfo", told_memory),
        (torch.cuda, "_get_device_properties", told_properties),
        (torch._C, "_cuda_getMemoryFraction", told_fraction),
        (torch._C, "_cuda_setMemoryFraction", bounded_fraction),
    ]
    for owner, name, told in places:
        if hasattr(owner, name):
            undo.enter_context(Patch(owner, name, told))


def _index(device: Any) -> int:
    return int(getattr(device, "index", device) or 0)


class CappedProperties:
    """A device's properties with another total. It answers everything else as the real ones do."""

    def __init__(self, true: Any, total: int) -> None:
        self._true = true
        self.total_memory = total

    def __getattr__(self, name: str) -> Any:
        return getattr(self._true, name)

    def __repr__(self) -> str:
        return f"{self._true!r} capped by pytest-memleak to {format_size(self.total_memory)}"
