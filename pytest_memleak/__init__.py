"""Tests state what memory they may use; this package holds them to it.

Beside the markers and fixtures that pytest knows, four things serve code without either:
`with pytest_memleak.measure("load") as load: …`, `pytest_memleak.watch(model)`,
`pytest_memleak.predict(program, card="24G")`, and `pytest_memleak.fixes.apply("four_bit_load")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_memleak import fixes

if TYPE_CHECKING:
    from torch import nn

    from pytest_memleak.blocks import Measured
    from pytest_memleak.prediction import PredictedCard, Prediction

__all__ = ["fixes", "measure", "predict", "watch"]


def measure(name: str, *, of: str = "allocated") -> Measured:
    """Measures a block: ``with measure("load") as load: …``; then ``load.peak``, ``.grown``, ``.limit("2GiB")``."""
    from pytest_memleak.blocks import Measured

    return Measured(name, of=of)


def watch(model: nn.Module) -> None:
    """From now on, until the test or block ends, the names in limits (``fp16_size`` …) are about this model."""
    from pytest_memleak.upstream import watched

    watched.watch(model)


def predict(fn: Callable[[PredictedCard], object], card: str | int = "h200") -> Prediction:
    """Runs ``fn(card)`` on a card that is not there (``"24G"``, ``"rtx3090"``), and says what it would take of it."""
    from pytest_memleak import prediction

    return prediction.predict(fn, card)
