"""What an operation's schema says about its arguments and results, looked up once for each operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_WRITES_ONLY = frozenset(
    "fill_ zero_ normal_ uniform_ random_ bernoulli_ exponential_ log_normal_ geometric_ cauchy_".split()
)
_SHAPE_FROM_VALUES = frozenset(
    "nonzero nonzero_static masked_select _unique _unique2 unique_dim unique_consecutive unique_dim_consecutive "
    "bincount equal".split()
)
_MOVES_INDICES = frozenset("index index_put index_put_ _index_put_impl_ _unsafe_index _unsafe_index_put".split())

# Results that a card's kernel allocates in another order than it returns them, as recorded runs show.
_ORDERS = {"_scaled_dot_product_cudnn_attention": (6, 7, 0, 1, 2, 3, 4, 5, 8)}


@dataclass(frozen=True)
class Operation:
    name: str
    written: tuple[tuple[int, str], ...]
    """Arguments that are written to, by position and name."""
    read: frozenset[str]
    """Those whose values matter."""
    views: tuple[tuple[int, str] | None, ...]
    """For each result the argument that it is a view of."""
    random: bool
    shape_from_values: bool
    order: tuple[int, ...]
    """In which the results get their memory."""
    takes_cpu: bool
    """Tensors of the CPU are welcome, though they have dimensions."""


def look_up(op: Any) -> Operation:
    schema = op._schema
    name = schema.name.partition("::")[2]
    written, read, base = [], set(), {}
    for index, argument in enumerate(schema.arguments):
        alias = argument.alias_info
        if alias is None:
            read.add(argument.name)
            continue
        if alias.is_write:
            written.append((index, argument.name))
            if not argument.is_out and not (index == 0 and name in _WRITES_ONLY):
                read.add(argument.name)
        else:
            read.add(argument.name)
        for label in alias.before_set:
            base[label] = None if alias.is_write else (index, argument.name)
    return Operation(
        name=name,
        written=tuple(written),
        read=frozenset(read),
        views=tuple(
            base.get(next(iter(result.alias_info.before_set), "")) if result.alias_info is not None else None
            for result in schema.returns
        ),
        random=torch.Tag.nondeterministic_seeded in op.tags,
        shape_from_values=name in _SHAPE_FROM_VALUES,
        order=_ORDERS.get(name, tuple(range(len(schema.returns)))),
        takes_cpu=name in _MOVES_INDICES,
    )
