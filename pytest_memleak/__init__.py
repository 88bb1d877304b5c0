"""Tests state what memory they may use; this package holds them to it.

Beside the markers and fixtures that pytest knows, six things serve code without either:
`with pytest_memleak.measure("load") as load: …`, `pytest_memleak.watch(model)`, `pytest_memleak.no_nan(model)`,
`pytest_memleak.same_on_all_ranks(model)`, `pytest_memleak.predict(program, card="24G")`, and
`pytest_memleak.fixes.apply("four_bit_load")`.

PYTEST_DONT_REWRITE: the process of a rank has imported this before pytest is there, which would warn of it: an error
under `filterwarnings = error`. No other module is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_memleak import fixes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pytest_memleak.blocks import Measured
    from pytest_memleak.prediction import PredictedCard, Prediction

__all__ = ["fixes", "measure", "no_nan", "predict", "same_on_all_ranks", "watch"]


def measure(name: str, *, of: str = "allocated") -> Measured:
    """Measures a block: ``with measure("load") as load: …``; then ``load.peak``, ``.grown``, ``.limit("2GiB")``."""
    from pytest_memleak.blocks import Measured

    return Measured(name, of=of)


def watch(model: nn.Module) -> None:
    """From now on, until the test or block ends, the names in limits (``fp16_size`` …) are about this model."""
    from pytest_memleak.upstream import watched

    watched.watch(model)


def no_nan(
    model_or_modules_or_tensors: object,
    gradients: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    losses: object = None,
) -> None:
    """Raises an AssertionError if there is a NaN in modules, tensors, or lists and dictionaries of them.

    Nor may there be infinities, but for buffers. gradients: in the `.grad` of parameters, too, and in their norm.
    """
    __tracebackhide__ = True
    from pytest_memleak import asserting

    asserting.no_nan(model_or_modules_or_tensors, gradients, optimizer, losses)


def same_on_all_ranks(model: nn.Module) -> None:
    """Raises an AssertionError if buffers or unsharded parameters are not rank 0's. All ranks have to call it."""
    __tracebackhide__ = True
    from pytest_memleak import asserting

    asserting.same_on_all_ranks(model)


def predict(fn: Callable[[PredictedCard], object], card: str | int = "h200") -> Prediction:
    """Runs ``fn(card)`` on a card that is not there (``"24G"``, ``"rtx3090"``), and says what it would take of it."""
    from pytest_memleak import prediction

    return prediction.predict(fn, card)
