"""Tests state what memory they may use; this package holds them to it.

Beside the markers and fixtures that pytest knows, two things serve code without either:
`with pytest_memleak.measure("load") as load: …` and `pytest_memleak.watch(model)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pytest_memleak.blocks import Measured

__all__ = ["measure", "watch"]


def measure(name: str, *, of: str = "allocated") -> Measured:
    """Measures a block: ``with measure("load") as load: …``; then ``load.peak``, ``.grown``, ``.limit("2GiB")``."""
    from pytest_memleak.blocks import Measured

    return Measured(name, of=of)


def watch(model: nn.Module) -> None:
    """From now on, until the test or block ends, the names in limits (``fp16_size`` …) are about this model."""
    from pytest_memleak.upstream import watched

    watched.watch(model)
