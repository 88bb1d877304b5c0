"""What kernels of a card take for themselves while they run, where it was seen in recorded runs.

None of it is in a result's shape, some of it decides where the next block lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Kernel = Callable[..., Any]


def _bytes(size: int, device: torch.device) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def power_of_a_number(kernel: Kernel) -> Kernel:
    """The base travels to the card as a tensor of its own."""

    def run(base: Any, exponent: torch.Tensor, **kwargs: Any) -> Any:
        scalar = torch.empty((), dtype=torch.float64, device=exponent.device)
        result = kernel(base, exponent, **kwargs)
        del scalar
        return result

    return run


def cudnn_attention(kernel: Kernel) -> Kernel:
    """Its workspace comes after the results."""

    def run(query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        results = kernel(query, *args, **kwargs)
        workspace = _bytes(256, query.device)
        del workspace
        return results

    return run


KERNELS: dict[str, Callable[[Kernel], Kernel]] = {
    "pow.Scalar_out": power_of_a_number,
    "_scaled_dot_product_cudnn_attention": cudnn_attention,
}
