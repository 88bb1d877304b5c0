"""Looks into a test's models while they live: when a load returns one, when one ends, and when the body has ended.

Most models end with the body, as its local variables do, and so before anybody could look at the body's end. Of each
model the last look counts: what a load leaves to be filled later is filled by then. No model is kept.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import nn

from pytest_memleak.upstream.loads import Seen

Found = TypeVar("Found")


@dataclass(frozen=True)
class Look(Generic[Found]):
    title: str
    when: str
    found: Found | None = None
    failed: str = ""
    """Why there is nothing found."""
    order: int = 0
    loads: tuple[int, ...] = ()
    loaded: bool = False


@dataclass(eq=False)
class _Kept(Generic[Found]):
    id: int
    ref: weakref.ref[Any]
    look: Look[Found]
    over: bool = False

    def is_of(self, seen: Seen, model: nn.Module) -> bool:
        # Not by the reference: where a whole cycle is collected, those are cleared before the objects end.
        return self.id == id(model) and self.look.order == seen.order and not self.over


class Looks(Generic[Found]):
    """Of one run of a test."""

    def __init__(
        self,
        look: Callable[[nn.Module], Found],
        *,
        at_loads: bool,
        is_bad: Callable[[Found], object] = lambda found: False,
    ) -> None:
        """`at_loads`: also when a load returns, for models whose end nobody sees."""
        self._look = look
        self._finds_bad = is_bad
        self._at_loads = at_loads
        self._kept: list[_Kept[Found]] = []

    def model_loaded(self, seen: Seen, model: nn.Module) -> None:
        if self._at_loads:
            self._note(seen, model, "when its load returned")

    def model_ends(self, seen: Seen, model: nn.Module) -> None:
        self._note(seen, model, "when it ended").over = True

    def body_ended(self, living: Iterable[tuple[Seen, nn.Module]]) -> None:
        for seen, model in living:
            self._note(seen, model, "when the body had ended")

    def all(self) -> list[Look[Found]]:
        """The last of each model, in their order; of a loaded one that is a part of another only what is news."""
        last = [kept.look for kept in self._kept]
        found = []
        for place, look in enumerate(last):
            around = [at for at, other in enumerate(last) if not other.loaded and look.order in other.loads]
            # A wrapper ends just before what is inside, and mostly nothing has happened in between.
            is_news = self._is_bad(look) and not any(at > place or self._is_bad(last[at]) for at in around)
            if not look.loaded or not around or is_news:
                found.append(look)
        return sorted(found, key=lambda look: look.order)

    def of(self, modules: Sequence[weakref.ref[Any]]) -> list[Look[Found]]:
        """The last of these, which somebody has named; those that live are looked at now."""
        looks: dict[int, Look[Found]] = {}
        for number, ref in enumerate(modules):
            module = ref()
            if module is not None:
                seen = Seen(number, type(module).__name__)
                looks[id(ref)] = self._look_at(seen, module, "when the body had ended")
            else:
                ended = next((kept.look for kept in reversed(self._kept) if kept.ref is ref), None)
                gone = Look[Found]("a model", "", failed="it was gone before anybody could look at it", order=number)
                looks[id(ref)] = gone if ended is None else ended
        return list(looks.values())

    def _is_bad(self, look: Look[Found]) -> bool:
        return bool(look.failed) or (look.found is not None and bool(self._finds_bad(look.found)))

    def _note(self, seen: Seen, model: nn.Module, when: str) -> _Kept[Found]:
        look = self._look_at(seen, model, when)
        # A model whose end nobody saw may have been at the same address: its order tells whose look that is. A list of
        # its own, because models end, and are noted, in the middle of anything.
        before = next((one for one in list(self._kept) if one.is_of(seen, model)), None)
        ref = weakref.ref(model) if before is None else before.ref
        if before is not None:
            self._kept.remove(before)  # the newest comes last
        kept = _Kept(id(model), ref, look)
        self._kept.append(kept)
        return kept

    def _look_at(self, seen: Seen, model: nn.Module, when: str) -> Look[Found]:
        made = Look[Found](seen.title, when, order=seen.order, loads=seen.loads, loaded=seen.loaded)
        try:
            return replace(made, found=self._look(model))
        # A module may be of any kind, half built, half gone; at its end an exception would only be printed and lost.
        except Exception as error:  # noqa: BLE001
            return replace(made, failed=f"looking at it raised {type(error).__name__}: {error!s:.200}")
