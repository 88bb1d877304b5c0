"""Which model the names in a limit are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pytest_memleak.errors import Inconclusive

if TYPE_CHECKING:
    from pytest_memleak.budget.model_sizes import ModelSizes


def which_model(named: object, seen: Sequence[ModelSizes], offer: str = "") -> ModelSizes:
    """The model that was named (a module, a config, a path), else the only one that was seen.

    `offer` is added where there is none: what the reader probably meant.
    """
    if named is not None:
        from pytest_memleak.budget.model_sizes import sizes_of

        return sizes_of(named)
    if len(seen) == 1:
        return seen[0]
    if not seen:
        raise Inconclusive(
            "the limit names a model's size, but no model was loaded or built here: name it with model= "
            f'("fixture:NAME", a path, a config), or call pytest_memleak.watch(model){offer}'
        )
    titles = "; ".join(sizes.title for sizes in seen)
    raise Inconclusive(
        f"the limit names a model's size, and there are {len(seen)} models: {titles}. Say which with model= or "
        "pytest_memleak.watch(model)"
    )
