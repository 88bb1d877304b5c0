"""Collections around tests that stay cheap in a large process.

A full collection walks every object the process has, which takes a tenth of a second once transformers is imported.
`settle` collects and then freezes what is left: the next collection, and the next census, only walk what came since.
Frozen objects vanish from `gc.get_objects` and `gc.get_referrers`, and cycles among them are never collected: `thaw`
before looking for referrers, and when the fixtures of a module or a session are torn down.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

Observer = Callable[[list[object]], None]

# At most how many objects we froze, or None while nothing of ours is frozen.
_frozen: int | None = None
# What may be frozen without being anybody's wish: CPython freezes some objects as it starts (375 in 3.12), and what
# the observers note is not listed. A program that freezes does so with all it has.
_NOBODYS = 5_000
_observers: list[weakref.WeakMethod[Observer]] = []


def collect_unless_off() -> bool:
    """Collects, unless the program switched collection off: then its cycles count as held. True if it collected."""
    if not gc.isenabled():
        return False
    gc.collect()
    return True


def settle() -> bool:
    """Collects and freezes; `newcomers` then starts anew. True if it froze.

    Nothing is frozen where the program freezes objects itself, or keeps collection switched off and may later collect
    what it left: everything still works then, and costs more.
    """
    global _frozen
    # Counting what is frozen takes as long as a collection, unless it is little: not asked again once we froze.
    may_freeze = collect_unless_off() and (_frozen is not None or gc.get_freeze_count() <= _NOBODYS)
    present = gc.get_objects()
    for reference in list(_observers):
        if observer := reference():
            observer(present)
        else:
            _observers.remove(reference)
    if may_freeze:
        _frozen = (_frozen or 0) + len(present)
        del present
        gc.freeze()
    return may_freeze


def newcomers() -> list[object]:
    """Objects made since `settle` and still alive; without a freeze (see there) simply all of them."""
    return gc.get_objects()


def thaw() -> None:
    """Makes what `settle` froze visible and collectable again."""
    global _frozen
    # More than we left: the program froze objects after us, and those stay.
    if _frozen is not None and gc.get_freeze_count() <= _frozen + _NOBODYS:
        gc.unfreeze()
    _frozen = None


def before_freezing(observer: Callable[[Any], None]) -> None:
    """`observer`, a method, is shown all objects which the next `settle` hides; it is kept weakly."""
    _observers.append(weakref.WeakMethod(observer))


def drop_last_exception() -> None:
    """Forgets the exception that the interpreter keeps for debuggers, with all locals of its frames."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
