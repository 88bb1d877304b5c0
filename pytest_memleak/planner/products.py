"""Products that torch's counter of operations does not know: those of bitsandbytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

Shape = Sequence[int]


def products_of_bitsandbytes() -> dict[Any, Callable[..., int]]:
    """How many operations each is, by the shapes it is called with: as torch's counter wants to be told."""
    formulas: dict[str, Callable[..., int]] = {
        "gemm_4bit": _of_shape,
        "int8_linear_matmul": _by_weights,
        "int8_scaled_mm": _by_weights,
        "int8_mixed_scaled_mm": _beside_outliers,
    }
    known = torch.ops.bitsandbytes
    return {getattr(known, name): formula for name, formula in formulas.items() if hasattr(known, name)}


def _of_shape(inputs: Shape, packed: Shape, shape: Shape, *rest: object, **more: object) -> int:
    """Packed weights do not have the shape of what is in them."""
    return 2 * math.prod(inputs) * shape[0]


def _by_weights(inputs: Shape, weights: Shape, *rest: object, **more: object) -> int:
    return 2 * math.prod(inputs) * weights[0]


def _beside_outliers(inputs: Shape, quantized: Shape, weights: Shape, *rest: object, **more: object) -> int:
    return _by_weights(inputs, weights)
