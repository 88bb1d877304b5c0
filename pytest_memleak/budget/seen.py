"""What was seen when a model was loaded, for whoever has that model in hand later."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from pytest_memleak.budget.model_sizes import ModelSizes

# By id, since a module may define an equality of its own and then has no hash; the model itself is not held.
_seen: dict[int, tuple[weakref.ref[nn.Module], ModelSizes]] = {}


def remember(model: nn.Module, sizes: ModelSizes) -> None:
    key = id(model)
    _seen[key] = (weakref.ref(model, lambda _: _seen.pop(key, None)), sizes)


def sizes_seen(model: object) -> ModelSizes | None:
    """Of this very model, if its load was observed in whichever window."""
    ref, sizes = _seen.get(id(model), (None, None))
    return sizes if ref is not None and ref() is model else None
