"""A closer look at one tensor that holds what is no finite number."""

from __future__ import annotations

import math

import torch

from pytest_memleak.events.places import Place
from pytest_memleak.values.found import Bad
from pytest_memleak.values.inside import is_wrapper, plain
from pytest_memleak.values.layout import index_at, pieces, without_repeats
from pytest_memleak.values.named import BUFFERS, Named
from pytest_memleak.values.readable import DIRECTLY


def closer(one: Named, values: torch.Tensor, place: Place | None = None) -> Bad:
    """How many of a tensor's values are no finite numbers, and where the first one is. `values`: `as_numbers`."""
    wanted = without_repeats(values)
    repeats = values.numel() // wanted.numel()
    nans = infinities = before = 0
    first: tuple[int, ...] = ()
    for piece in pieces(wanted):
        numbers = piece if piece.dtype in DIRECTLY else piece.float()
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
