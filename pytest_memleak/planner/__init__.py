"""How a model is trained on a card that is too small for it: ProTrain's planner, which sees the whole model.

``planner = Planner.of(model, make_optimizer=…)`` profiles a step, ``planner.search(capacity)`` finds the fastest plan
that fits, and ``with planner.train(plan) as training: …; training.step()`` trains by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_memleak.planner.plan import Plan
    from pytest_memleak.planner.planning import Planner

__all__ = ["Plan", "Planner"]


def __getattr__(name: str) -> object:
    """Plans and their search know nothing of torch; what profiles and trains is imported when it is asked for."""
    if name == "Planner":
        from pytest_memleak.planner.planning import Planner

        return Planner
    if name == "Plan":
        from pytest_memleak.planner.plan import Plan

        return Plan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
