"""Collections around tests that stay cheap in a large process, and that the program under test does not notice.

A full collection walks every object the process has, which takes a tenth of a second once transformers is imported.
`settle` collects and then freezes what is left: the next collection, and the next census, only walk what came since.

Frozen objects would vanish from `gc.get_objects` and `gc.get_referrers`, and cycles among them would never be
collected. From `begin_session` to `end_session` the program sees none of this: its own full collections and questions
find everything, and once it freezes objects itself, nothing of ours is frozen any more.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from pytest_memleak.events.callbacks import called_by_native_code

Observer = Callable[[list[object]], None]

# The program may call the ones that `begin_session` puts in their place; we never do.
get_referrers = gc.get_referrers
"""The interpreter's own, for whoever searches: the one in its place adds its own frame to what refers to an object."""
_get_objects, _freeze, _unfreeze, _count_frozen = gc.get_objects, gc.freeze, gc.unfreeze, gc.get_freeze_count

# What may be frozen without being anybody's wish: CPython freezes some objects as it starts (375 in 3.12).
# A program that freezes does so with all it has.
_NOBODYS = 5_000
# Objects whose __del__ or whose weak references' callbacks let go of others: a few rounds, and no chase without end.
_ROUNDS = 3

_observers: list[weakref.WeakMethod[Observer]] = []


class _State:
    """What is frozen, and by whom."""

    ours = False  # objects are frozen, and it was us
    theirs: bool | None = None  # the program froze objects; None: not asked yet
    nobodys = 0  # how many were frozen before anybody did so
    stale = False  # the next `settle` has to collect among the frozen objects too
    busy = 0  # the thread that runs our own code here: its collections are not the program's
    patched: dict[str, Callable[..., Any]]
    # Addresses of newcomers that lie among the frozen since the program looked. What is at such an address later is
    # a newcomer as well, so that an address that is used again misleads nobody. An array: no object for each.
    hidden: array[int]

    def __init__(self) -> None:
        self.patched = {}
        self.hidden = array("Q")


_state = _State()


def collect_unless_off() -> bool:
    """Collects newcomers, unless the program switched collection off: then its cycles count as held."""
    if not gc.isenabled():
        return False
    with _undisturbed():
        if _state.ours and _state.hidden:
            _uncover()
            _collect()
            _cover()
        else:
            _collect()
    return True


def collect_everything() -> bool:
    """Collects, also among what is frozen, unless the program switched collection off. `newcomers` stay the same."""
    if not gc.isenabled():
        return False
    with _undisturbed():
        was_ours = _state.ours
        if was_ours:
            _uncover()
        _collect()
        if was_ours:
            _cover()
    return True


def settle() -> bool:
    """Collects and freezes; `newcomers` then starts anew. True if it froze.

    Where collection is switched off it only freezes. Where the program froze objects itself it only collects:
    everything still works then, and costs more.
    """
    with _undisturbed():
        collecting = gc.isenabled()
        if collecting:
            _collect()
        _show(newcomers())
        _state.stale = _state.stale or bool(_state.hidden)
        if _state.ours and _state.stale and collecting:
            # Only now: what came since is clean, so that one walk over everything is mostly enough.
            _unfreeze()
            _state.ours = False
            _collect()
            _show(_get_objects(0))  # what finalizers made
        _state.stale = _state.stale and not collecting
        return _hide()


def hide_newcomers() -> bool:
    """Freezes what is there and never walks all objects for it; `newcomers` then starts anew. True if it froze."""
    with _undisturbed():
        if _state.ours and not _state.hidden and gc.isenabled():
            _collect()  # only what came since, or it would be frozen as garbage
        else:
            _state.stale = True
        _show(newcomers())
        return _hide()


def newcomers() -> list[object]:
    """Objects made since `settle` and still alive; simply all of them while nothing of ours is frozen."""
    if not (_state.ours and _state.hidden):
        return _get_objects()
    with _undisturbed():
        _uncover()
        wanted = frozenset(_state.hidden)
        found = [one for one in _get_objects() if id(one) in wanted]
        _freeze()
    return found


def in_sight() -> list[object]:
    """Those objects that the observers may not have been shown yet: less than the newcomers, and always cheap."""
    return _get_objects()


@contextlib.contextmanager
def everything_in_sight() -> Iterator[None]:
    """Until the end nothing is hidden from a search; `newcomers` stay the same."""
    if not _state.ours:
        yield
        return
    with _undisturbed():
        _uncover()
        _state.ours = False  # or whoever asks for objects would hide them again
        try:
            yield
        finally:
            _state.ours = True
            _cover()


def stale() -> None:
    """The next `settle` collects among what is frozen too: wider fixtures were torn down."""
    _state.stale = True


def thaw() -> None:
    """Freezes nothing any more until the next `settle`."""
    if _state.ours:
        _unfreeze()
    _state.ours = _state.stale = False
    del _state.hidden[:]


def before_freezing(observer: Callable[[Any], None]) -> None:
    """`observer`, a method, is shown all objects before they are hidden; it is kept weakly."""
    _observers.append(weakref.WeakMethod(observer))


def begin_session() -> None:
    """From here on the program does not notice what is frozen. May be called again."""
    if not _state.patched:
        _ask_once()
        for name, around in _PATCHES.items():
            original = getattr(gc, name)
            _state.patched[name] = original
            setattr(gc, name, functools.wraps(original)(around(original)))
    if _on_collection not in gc.callbacks:
        gc.callbacks.append(_on_collection)


def end_session() -> None:
    """Freezes nothing any more and restores `gc` as it was. May be called again."""
    thaw()
    for name, original in _state.patched.items():
        # Somebody who wrapped it after us keeps their wrapper; ours then only passes on.
        if getattr(getattr(gc, name), "__wrapped__", None) is original:
            setattr(gc, name, original)
    _state.patched.clear()
    _state.theirs = None
    if _on_collection in gc.callbacks:
        gc.callbacks.remove(_on_collection)


def drop_last_exception() -> None:
    """Forgets the exception that the interpreter keeps for debuggers, with all locals of its frames."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


def _collect() -> None:
    for _ in range(_ROUNDS):
        if not gc.collect():
            return


def _hide() -> bool:
    del _state.hidden[:]
    if _ask_once():
        return False
    _freeze()
    _state.ours = True
    if _state.patched:
        begin_session()  # the program may have emptied gc.callbacks
    return True


def _ask_once() -> bool:
    """Whether the program froze objects. Counting them takes as long as a collection: later we are told."""
    if _state.theirs is None:
        _state.nobodys = _count_frozen()
        _state.theirs = _state.nobodys > _NOBODYS
    return _state.theirs


def _uncover() -> None:
    """Makes everything visible; `_cover` hides it again, and the newcomers are still known."""
    present = _get_objects()
    _show(present)
    _remember(present)
    _unfreeze()


def _cover() -> None:
    present = _get_objects(0)  # what was made since
    _show(present)
    _remember(present)
    _freeze()


def _remember(objects: list[object]) -> None:
    _state.hidden.extend(map(id, objects))


def _show(objects: list[object]) -> None:
    for reference in list(_observers):
        if observer := reference():
            observer(objects)
        else:
            _observers.remove(reference)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A collection that this thread sets off meanwhile is ours."""
    before, _state.busy = _state.busy, threading.get_ident()
    try:
        yield
    finally:
        _state.busy = before


@called_by_native_code
def _on_collection(phase: str, info: dict[str, int]) -> None:
    # CPython calls this before it gathers the objects to look at, and never while another collection runs.
    if info["generation"] < 2 or not _state.ours or _state.busy == threading.get_ident():
        return
    if phase == "start":
        _uncover()
    else:
        _cover()


def _seeing_all(original: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **kwargs: Any) -> Any:
        if not _state.ours:
            found = original(*args, **kwargs)
        else:
            with _undisturbed():
                _uncover()
                try:
                    found = original(*args, **kwargs)
                finally:
                    _cover()
        # Of two questions one is who refers to something, and this call's own arguments do.
        return [one for one in found if one is not args]

    return ask


def _freezing(original: Callable[[], None]) -> Callable[[], None]:
    def freeze() -> None:
        # What we froze stays frozen, and is theirs now.
        _state.ours, _state.theirs = False, True
        del _state.hidden[:]
        original()

    return freeze


def _unfreezing(original: Callable[[], None]) -> Callable[[], None]:
    def unfreeze() -> None:
        _state.nobodys = 0
        if not _state.ours:
            _state.theirs = False
            original()

    return unfreeze


def _counting(original: Callable[[], int]) -> Callable[[], int]:
    def get_freeze_count() -> int:
        return original() if _state.theirs else _state.nobodys

    return get_freeze_count


_PATCHES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "get_objects": _seeing_all,
    "get_referrers": _seeing_all,
    "freeze": _freezing,
    "unfreeze": _unfreezing,
    "get_freeze_count": _counting,
}
