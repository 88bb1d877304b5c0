"""A look for values that are no finite numbers, at the speed of memory and without a copy of what is looked at.

NaN is found in everything, infinities in everything but buffers: a mask may hold -inf. Each tensor is read once, by
`torch.aminmax`, which hands a NaN on; one that is found so is read again, in pieces, for how many there are and where
the first one is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from pytest_memleak.events.places import Place
from pytest_memleak.values.inside import has_no_values, is_known, is_wrapper, plain, reading, simulated, values_of
from pytest_memleak.values.layout import in_memory_order, index_at, pieces, without_repeats
from pytest_memleak.values.named import BUFFERS, GRADIENT, ORDINARY, Named

PlaceOf = Callable[[torch.Tensor], Place | None]

_TOGETHER = 128
"""Tensors whose extremes are fetched from their device at once: each time the device has to be waited for."""
# Of the others float8 is cast piece by piece, and float4 has no NaN.
_DIRECTLY = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_ALWAYS_FINITE = "torch.float4_e2m1fn_x2"


@dataclass(frozen=True)
class Bad:
    """A tensor that holds what is no finite number."""

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    count: int
    """Of its values; a complex one is two."""
    nans: int
    infinities: int
    """0 in a buffer, where they are not looked for."""
    first: tuple[int, ...]
    """Where the first of them is."""
    shard: bool = False
    """All this is of the rank's own shard."""
    place: Place | None = None
    """Where its memory was allocated, if that was recorded."""


@dataclass
class Scan:
    """What was found among some tensors."""

    looked: Counter[str] = field(default_factory=Counter)
    """How many tensors of each kind were read."""
    bad: list[Bad] = field(default_factory=list)
    unmaterialized: list[str] = field(default_factory=list)
    """On the meta device: without any values yet."""
    unknown: list[str] = field(default_factory=list)
    """On a simulated card, or fake: nobody computed them."""
    unreadable: list[str] = field(default_factory=list)
    """In a layout whose values cannot be got at."""
    largest: list[Largest] = field(default_factory=list)
    """Of all gradients that are fine."""

    def add(self, other: Scan) -> None:
        """Of a step among many: how many tensors were looked at is told of the largest one."""
        self.looked |= other.looked
        self.bad += [one for one in other.bad if one not in self.bad]
        for mine, more in (
            (self.unmaterialized, other.unmaterialized),
            (self.unknown, other.unknown),
            (self.unreadable, other.unreadable),
        ):
            mine += [name for name in more if name not in mine]


@dataclass(frozen=True)
class Largest:
    """The largest magnitude in a tensor."""

    name: str
    magnitude: float
    count: int
    dtype: torch.dtype


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
                if not self._is_seen(one.tensor):
                    self._found.looked[one.kind] += 1
                    self._ask(_Part(one, one.tensor, number), (one.tensor,))
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
            and tensor.dtype in _DIRECTLY
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
                self._ask(part, _readable(without_repeats(part.values)))

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

    def _ask(self, part: _Part, readable: Iterable[torch.Tensor]) -> None:
        values = part.values
        key = values.device, values.dtype if values.dtype in _DIRECTLY else torch.float32
        extremes = self._extremes.get(key)
        if extremes is None:
            if values.device.type != "cpu":  # what another stream still writes is not there yet
                torch.accelerator.synchronize(values.device)
            extremes = self._extremes[key] = _Extremes(*key)
        for piece in readable:
            if extremes.full:
                self._judge(extremes)
            extremes.add(part, piece)

    def _judge(self, extremes: _Extremes) -> None:
        for part, low, high in extremes.read():
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
        self._found = torch.empty(_TOGETHER, 2, device=device, dtype=dtype)
        self._places: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Views of these, made when they are wanted: few tensors are not to wait for many views."""
        self._asked: list[_Part] = []

    @property
    def full(self) -> bool:
        return len(self._asked) == _TOGETHER

    def add(self, part: _Part, piece: torch.Tensor) -> None:
        number = len(self._asked)
        if number == len(self._places):
            row = self._found[number]
            self._places.append((row[0], row[1]))
        torch.aminmax(piece, out=self._places[number])
        self._asked.append(part)

    def read(self) -> Iterator[tuple[_Part, float, float]]:
        asked, self._asked = self._asked, []
        for part, (low, high) in zip(asked, self._found[: len(asked)].tolist(), strict=True):
            yield part, low, high


def closer(one: Named, values: torch.Tensor, place: Place | None = None) -> Bad:
    """How many of a tensor's values are no finite numbers, and where the first one is. `values`: `as_numbers`."""
    wanted = without_repeats(values)
    repeats = values.numel() // wanted.numel()
    nans = infinities = before = 0
    first: tuple[int, ...] = ()
    for piece in pieces(wanted):
        numbers = piece if piece.dtype in _DIRECTLY else piece.float()
        before += piece.numel()
        if all(math.isfinite(extreme.item()) for extreme in torch.aminmax(numbers)):
            continue  # nearly all pieces of a large tensor, mostly
        bad = numbers.isnan()
        found = int(bad.sum())
        nans += found
        if one.kind not in BUFFERS:
            infinite = numbers.isinf()
            found += (more := int(infinite.sum()))
            infinities += more
            bad |= infinite
        if found and found == nans + infinities:  # the first piece with any
            first = index_at(before - piece.numel() + int(bad.view(torch.uint8).argmax()), wanted.shape)
    inside = next(plain(one.tensor))
    are_pairs = inside.is_complex()
    return Bad(
        one.name,
        one.kind,
        str(inside.dtype).removeprefix("torch."),
        tuple(values.shape[:-1] if are_pairs else values.shape),
        str(inside.device),
        values.numel(),
        nans * repeats,
        infinities * repeats,
        first[:-1] if are_pairs else first,
        shard=is_wrapper(one.tensor),
        place=place,
    )


def as_numbers(values: torch.Tensor) -> torch.Tensor:
    """Complex numbers as pairs; what a simulated card knows is little, and is read on the CPU."""
    if simulated() and values.device.type != "cpu":
        values = values.cpu()
    if not values.is_complex():
        return values
    # A conjugate has its NaN in the same places.
    return torch.view_as_real(values.conj() if values.is_conj() else values)


def _readable(values: torch.Tensor) -> Iterator[torch.Tensor]:
    """As `torch.aminmax` takes it, and without a copy of the whole."""
    ordered = in_memory_order(values)
    if ordered is not None and values.dtype in _DIRECTLY:
        yield ordered
        return
    for piece in pieces(values if ordered is None else ordered):
        yield piece if piece.dtype in _DIRECTLY else piece.float()
