"""Gradients that are finite one by one, and whose norm is not: then clipping them makes zeros or NaN of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pytest_memleak.values.found import Largest
from pytest_memleak.values.inside import plain, reading
from pytest_memleak.values.named import Named

# Squares are added up in float32, also those of bfloat16; the norm of float16 has to fit into float16.
_MOST = {
    torch.float16: torch.finfo(torch.float16).max,
    torch.float64: math.sqrt(torch.finfo(torch.float64).max),
}
_MOST_OF_OTHERS = math.sqrt(torch.finfo(torch.float32).max)


def infinite_norm(gradients: Sequence[Named], largest: Sequence[Largest]) -> str:
    """The largest of the gradients, in words, if their norm is infinite; empty if it is a number. None may be NaN.

    `largest` is what a scan of them has found, and nearly always tells that the norm needs no computing.
    """
    if not largest:
        return ""
    bound = max(one.magnitude * math.sqrt(one.count) for one in largest) * math.sqrt(len(largest))
    if bound < min(_MOST.get(one.dtype, _MOST_OF_OTHERS) for one in largest):
        return ""
    # The rank's own shard alone: all ranks would have to meet for the norm of the whole.
    with reading():
        parts = [part for one in gradients for part in plain(one.tensor) if part.is_floating_point() and part.numel()]
        # As torch.nn.utils.clip_grad_norm_ does it.
        norms = [torch.linalg.vector_norm(part) for part in parts]
        total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
        if not bool(total.isinf()):
            return ""
    worst = max(largest, key=lambda one: one.magnitude)
    return f"each is finite, the largest is {worst.magnitude:.3g} ({str(worst.dtype).removeprefix('torch.')})"
