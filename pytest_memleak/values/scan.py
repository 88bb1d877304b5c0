"""A look for values that are no finite numbers, at the speed of memory and without a copy of what is looked at.

NaN is found in everything, infinities in everything but buffers: a mask may hold -inf. Each tensor is read once, by
`torch.aminmax`, which hands a NaN on; one that is found so is read again, in pieces, for how many there are and where
the first one is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from pytest_memleak.events.places import Place
from pytest_memleak.values.closer import closer
from pytest_memleak.values.found import Bad, Largest, Scan
from pytest_memleak.values.inside import has_no_values, is_known, plain, reading, simulated, values_of
from pytest_memleak.values.layout import without_repeats
from pytest_memleak.values.named import BUFFERS, GRADIENT, ORDINARY, Named
from pytest_memleak.values.readable import DIRECTLY, as_numbers, readable

PlaceOf = Callable[[torch.Tensor], Place | None]

_TOGETHER = 512
"""Tensors whose extremes are fetched from their device at once: each time the device has to be waited for."""
_AT_A_TIME = 64
_ALWAYS_FINITE = "torch.float4_e2m1fn_x2"


def scan(named: Iterable[Named], place_of: PlaceOf = lambda tensor: None) -> Scan:
    """Looks at each piece of memory once, under the first of its names. No tensor is kept."""
    with reading():
        return _Look(place_of).at(named)


class _Part(NamedTuple):
    """Numbers that one tensor holds."""

    of: Named
    values: torch.Tensor
    number: int
    """Of the tensor, in the order in which they came."""


class _Look:
    def __init__(self, place_of: PlaceOf) -> None:
        self._found = Scan()
        self._place_of = place_of
        self._seen: set[object] = set()
        self._simulated = simulated()
        self._bad: dict[int, Bad] = {}
        self._extremes: dict[tuple[torch.device, torch.dtype], _Extremes] = {}

    def at(self, named: Iterable[Named]) -> Scan:
        for number, one in enumerate(named):
            if self._is_simple(one.tensor):
                # The way of nearly all tensors: what is asked of each takes a GPU's time, if they are small.
                self._ask_simple(one, number)
            elif has_no_values(one.tensor):
                self._found.unmaterialized.append(one.name)
            else:
                for tensor in plain(one.tensor):
                    self._look_into(one, tensor, number)
        for extremes in self._extremes.values():
            self._judge(extremes)
        # Types and devices were waited for apart from each other.
        self._found.bad += [self._bad[number] for number in sorted(self._bad)]
        return self._found

    def _is_simple(self, tensor: torch.Tensor) -> bool:
        return (
            type(tensor) in ORDINARY
            and tensor.dtype in DIRECTLY
            and tensor.layout is torch.strided
            and not (tensor.is_meta or tensor.is_nested or self._simulated)
            and tensor.is_contiguous()
            and tensor.numel() > 0
        )

    def _look_into(self, one: Named, tensor: torch.Tensor, number: int) -> None:
        if has_no_values(tensor):
            self._found.unmaterialized.append(one.name)
            return
        if not (tensor.is_floating_point() or tensor.is_complex()):
            return  # whole numbers are always finite
        if not is_known(tensor):
            self._found.unknown.append(one.name)
            return
        values = values_of(tensor)
        if values is None:
            self._found.unreadable.append(one.name)
        elif not self._is_seen(values):
            self._found.looked[one.kind] += 1
            if values.numel() and str(values.dtype) != _ALWAYS_FINITE:
                part = _Part(one, as_numbers(values.detach()), number)
                self._ask(part, readable(without_repeats(part.values)))

    def _is_seen(self, tensor: torch.Tensor) -> bool:
        """Tied weights are one tensor under two names, or two tensors on one piece of memory."""
        if not tensor.numel():
            return False
        where: object = (tensor.data_ptr(), tensor.numel(), tensor.dtype)
        if not tensor.is_contiguous():
            where = (where, tensor.shape, tensor.stride())
        before = len(self._seen)
        self._seen.add(where)
        return len(self._seen) == before

    def _ask_simple(self, one: Named, number: int) -> None:
        values = one.tensor
        where = (values.data_ptr(), values.numel(), values.dtype)
        if where in self._seen:
            return
        self._seen.add(where)
        self._found.looked[one.kind] += 1
        extremes = self._extremes_of(values.device, values.dtype)
        if extremes.full:
            self._judge(extremes)
        extremes.add((one, values, number), values)

    def _ask(self, part: _Part, pieces: Iterable[torch.Tensor]) -> None:
        dtype = part.values.dtype
        extremes = self._extremes_of(part.values.device, dtype if dtype in DIRECTLY else torch.float32)
        for piece in pieces:
            if extremes.full:
                self._judge(extremes)
            extremes.add(part, piece)

    def _extremes_of(self, device: torch.device, dtype: torch.dtype) -> _Extremes:
        found = self._extremes.get((device, dtype))
        if found is None:
            if device.type != "cpu":  # what another stream still writes is not there yet
                torch.accelerator.synchronize(device)
            found = self._extremes[device, dtype] = _Extremes(device, dtype)
        return found

    def _judge(self, extremes: _Extremes) -> None:
        for part, low, high in extremes.worth_a_look():
            kind = part.of.kind
            if not (math.isfinite(low) and math.isfinite(high)):
                if kind not in BUFFERS or math.isnan(low) or math.isnan(high):
                    self._look_closer(part)
            elif kind == GRADIENT:
                self._found.largest.append(
                    Largest(part.of.name, max(abs(low), abs(high)), part.values.numel(), part.values.dtype)
                )

    def _look_closer(self, part: _Part) -> None:
        if part.number in self._bad:
            return  # it was read in pieces, and this is not the first bad one
        places = map(self._place_of, plain(part.of.tensor))
        place = next((place for place in places if place is not None), None)
        self._bad[part.number] = closer(part.of, part.values.detach(), place)


class _Extremes:
    """The least and the greatest value of several tensors of one type, kept where these lie until all are read."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._found = torch.empty(2, _TOGETHER, device=device, dtype=dtype)
        self._places: list[tuple[torch.Tensor, ...]] = []
        """Views of these."""
        self._asked: list[tuple[Named, torch.Tensor, int]] = []

    @property
    def full(self) -> bool:
        return len(self._asked) == _TOGETHER

    def add(self, part: tuple[Named, torch.Tensor, int], piece: torch.Tensor) -> None:
        number = len(self._asked)
        if number == len(self._places):  # some at a time: few tensors are not to wait for many views
            lows, highs = self._found[:, number : number + _AT_A_TIME].unbind()
            self._places += zip(lows.unbind(), highs.unbind(), strict=True)
        torch.aminmax(piece, out=self._places[number])
        self._asked.append(part)

    def worth_a_look(self) -> Iterator[tuple[_Part, float, float]]:
        """Those that are not finite, and gradients, whose size is wanted. Nearly all tensors are neither: to go through
        hundreds of them would take as long as a GPU takes to read a few.
        """
        asked, self._asked = self._asked, []
        lows, highs = self._found[:, : len(asked)].tolist()
        fine = all(map(math.isfinite, lows)) and all(map(math.isfinite, highs))
        for part, low, high in zip(asked, lows, highs, strict=True):
            if not fine or part[0].kind == GRADIENT:
                yield _Part(*part), low, high
