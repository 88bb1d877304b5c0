"""Reference implementations of upstream fixes, and the bugs put back: one file each, listed by `names()`.

In a program of one's own: ``pytest_memleak.fixes.apply("four_bit_load")``. In tests the markers ``memleak_fix`` and
``memleak_bug`` do it for as long as the test runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import ExitStack

    from pytest_memleak.fixes.frame import Applied, Fix

__all__ = ["apply", "find", "names"]

_in_force: set[ExitStack] = set()
"""What `apply` did and nobody has undone."""


def names() -> tuple[str, ...]:
    """The fixes there are. Finding that out imports none of them."""
    import pkgutil

    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if _is_a_fix(module.name)))


def find(name: str) -> Fix:
    """The fix of that name; a `BadInput` that lists the names there are, if there is none."""
    import importlib

    from pytest_memleak.errors import BadInput

    if name not in names():
        raise BadInput(f"there is no fix {name!r}; there are {', '.join(names())}")
    fix: Fix = importlib.import_module(f"{__name__}.{name}").FIX
    return fix


def apply(name: str) -> Applied:
    """Mends the upstream that is installed, until the process ends or `undo()` of what is returned is called.

    Where upstream is right, nothing is patched. What was done is what ``str()`` of the result says; it is logged, too.
    """
    import logging
    from contextlib import ExitStack

    undo = ExitStack()
    applied = undo.enter_context(find(name).fixed())
    # Whoever drops the result wants the fix to stay: what nothing holds would be collected, and undone by that.
    _in_force.add(undo)
    undo.callback(_in_force.discard, undo)
    applied.undo_with(undo.close)
    # A program that patches its libraries should say so without being asked; that nothing was done is no news.
    logging.getLogger(__name__).log(logging.WARNING if applied.patched else logging.INFO, "%s", applied)
    return applied


def _is_a_fix(module: str) -> bool:
    return module != "frame" and not module.startswith("_")
