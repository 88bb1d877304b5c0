"""Finds the way from something a program can name (a module's global, a class, a test's ``self``) down to an object.

The search goes upwards, breadth first, through the garbage collector's referrers. It keeps what it meets alive in one
dictionary, and remembers ids everywhere else: so that its own containers are not mistaken for holders, and nothing
outlives `close`. It does not see objects that are frozen (``gc.freeze``): thaw before.
"""

from __future__ import annotations

import gc
import sys
import time
import types
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch

from pytest_memleak.events.garbage import get_referrers
from pytest_memleak.ledger.looking import LruCache, is_a, module_of, namespace_name, own_dict
from pytest_memleak.ledger.standing import (
    FRAME,
    PLAIN,
    Root,
    module_of_frame,
    rank_of,
    rank_of_module,
    running_locals,
    telling_of,
)

STEPS = 40
"""Calls of ``gc.get_referrers`` for one object; each reads the whole heap."""
_WIDTH = 64  # objects asked about in one call: its cost grows with them
_OWN = __name__.partition(".")[0]

Kind = Literal["named", "unnamed", "cycle", "unknown", "unfinished"]
"""*unnamed*: held by a frame, a generator or a function that nothing with a name holds in turn."""


@dataclass(frozen=True)
class Holder:
    """What holds an object: the ids of the objects from the outermost down to it."""

    kind: Kind
    path: tuple[int, ...]
    cycle: tuple[int, ...] = ()
    """Of a reference cycle: its objects, each held by the one before, the first by the last."""
    ancestors: tuple[int, ...] = ()
    """If nothing has a name: everything that refers to the object, at any distance."""


class Search:
    """Searches for many objects, which share what was found for the ones before."""

    def __init__(self, roots: Mapping[str, object], ignore: Collection[object], seconds: float) -> None:
        self.objects: dict[int, object] = {}
        """Everything met, by id: the only strong references."""
        self.roots = {id(value): Root(name) for name, value in roots.items()}
        self.running = dict(running_locals())
        self._ignored = {id(ignore), id(roots), id(self.objects), *map(id, ignore)}
        self._deadline = time.monotonic() + seconds
        self._paths: dict[int, tuple[int, ...]] = {}
        """The way to every object on a path that has a name."""

    @property
    def over(self) -> bool:
        return time.monotonic() > self._deadline

    def close(self) -> None:
        self.objects.clear()

    def ignore(self, *containers: object) -> None:
        """Never takes these for holders; the caller keeps them alive as long as the search is used."""
        self._ignored.update(map(id, containers))

    def keep(self, thing: object) -> int:
        self.objects[id(thing)] = thing
        return id(thing)

    def holder_of(self, starts: Sequence[int]) -> Holder:
        """Who holds the first of these kept objects that has a holder with a name (tensors that share a storage)."""
        holder = _Climb(self, starts).run(STEPS)
        if holder.kind == "named":
            for depth in range(len(holder.path)):
                self._paths.setdefault(holder.path[depth], holder.path[: depth + 1])
        return holder

    def known(self, thing: object, below: object) -> tuple[int, int, tuple[int, ...]] | None:
        """If a path may begin here: how good that is (the less the better, twice), and the way to this object."""
        key = id(thing)
        if key in self._paths:
            return PLAIN, 0, self._paths[key]
        if key in self.roots:
            return PLAIN, 3, (key,)
        if key in self.running:
            return FRAME, 0, (key,)
        name = namespace_name(thing)
        if name is not None:
            imported_by_a_test = name.rpartition(".")[2].startswith(("test_", "conftest"))
            return rank_of_module(name), int(imported_by_a_test), (key,)
        if is_a(thing, type):
            return rank_of_module(module_of(thing)), 1, (key,)
        if type(thing) is LruCache and below is not own_dict(thing):
            return PLAIN, 2, (key,)
        return None

    def referrers(self, keys: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of ids, referrer and what it refers to."""
        # A tuple is passed on as it is; a list would be copied, and the copy found where that function is wrapped.
        asked = tuple(self.objects[key] for key in keys)
        found = get_referrers(*asked)
        own = {id(asked), *self._ignored}
        pairs: list[tuple[int, int]] = []
        for thing in found:
            if id(thing) in own or (type(thing) is types.FrameType and module_of_frame(thing) == _OWN):
                continue
            parts = keys if len(keys) == 1 else {id(part) for part in gc.get_referents(thing)}.intersection(keys)
            self.keep(thing)
            pairs.extend((id(thing), part) for part in parts)
        return pairs


class _Climb:
    """The search for the holder of one object."""

    def __init__(self, search: Search, starts: Sequence[int]) -> None:
        self._search = search
        self._starts = starts
        self._below: dict[int, int | None] = dict.fromkeys(starts)
        self._rank = dict.fromkeys(starts, PLAIN)
        self._todo: list[list[int]] = [list(starts), [], [], []]
        self._holders: dict[int, list[int]] = {}
        self._best: tuple[int, int, int, tuple[int, ...]] | None = None
        """Rank, length, preference and path of the best beginning so far."""

    def run(self, steps: int) -> Holder:
        for start in self._starts:
            self._consider(start, None, PLAIN)
        for _ in range(steps):
            rank = next((rank for rank, keys in enumerate(self._todo) if keys), None)
            if rank is None or (self._best is not None and self._best[0] <= rank):
                break
            if self._search.over:
                return self._named() or Holder("unfinished", (self._starts[0],))
            keys, self._todo[rank] = self._todo[rank][:_WIDTH], self._todo[rank][_WIDTH:]
            for holder, held in self._search.referrers(keys):
                self._meet(holder, held)
        return self._named() or self._unnamed()

    def _meet(self, key: int, held: int) -> None:
        self._holders.setdefault(held, []).append(key)
        if key in self._below:
            return
        thing = self._search.objects[key]
        rank = max(self._rank[held], rank_of(thing))
        self._below[key], self._rank[key] = held, rank
        if not self._consider(key, held, rank):
            self._todo[rank].append(key)

    def _consider(self, key: int, held: int | None, rank: int) -> bool:
        """Whether the way up ends here: a path may begin at this object, and was compared with the best one so far."""
        known = self._search.known(self._search.objects[key], self._search.objects.get(held or 0))
        if known is None:
            return False
        root_rank, preference, above = known
        path = above + self._down_from(held)
        candidate = (max(rank, root_rank), len(path), preference, path)
        if self._best is None or candidate[:3] < self._best[:3]:
            self._best = candidate
        return key not in self._search.running  # above a variable, there may still be a name that lasts

    def _down_from(self, key: int | None) -> tuple[int, ...]:
        path = []
        while key is not None:
            path.append(key)
            key = self._below[key]
        return tuple(path)

    def _named(self) -> Holder | None:
        return Holder("named", self._best[3]) if self._best else None

    def _unnamed(self) -> Holder:
        """A frame, a generator or a function says enough by itself; otherwise it is a cycle, or nobody Python knows."""
        if any(self._todo):
            return Holder("unfinished", (self._starts[0],))
        objects = self._search.objects
        ancestors = tuple(self._below)
        cycle = self._cycle()
        if cycle and self._held_from_outside():
            cycle = ()
        telling, _, best = max((telling_of(objects[key]), -place, key) for place, key in enumerate(ancestors))
        if telling:
            return Holder("unnamed", self._down_from(best), cycle, ancestors)
        if cycle:
            first = next(key for key in ancestors if key in cycle)
            return Holder("cycle", self._down_from(self._whose(first)), cycle, ancestors)
        return Holder("unknown", self._down_from(ancestors[-1]), (), ancestors)

    def _whose(self, key: int) -> int:
        """The instance, if this is the ``__dict__`` of one: that has no name of its own."""
        objects = self._search.objects
        owners = (holder for holder in self._holders.get(key, ()) if own_dict(objects[holder]) is objects[key])
        return next(owners, key)

    def _cycle(self) -> tuple[int, ...]:
        """The objects of a reference cycle, the holder before the held."""
        for start in islice(self._below, _WIDTH):
            came_from: dict[int, int] = {}
            todo = [start]
            for key in todo:
                for holder in self._holders.get(key, ()):
                    if holder == start:
                        cycle = [key]
                        while cycle[-1] != start:
                            cycle.append(came_from[cycle[-1]])
                        return tuple(cycle)
                    if holder not in came_from:
                        came_from[holder] = key
                        todo.append(holder)
        return ()

    def _held_from_outside(self) -> bool:
        """Whether any of these has more references than the others and this search account for."""
        objects = self._search.objects
        # A generator: a variable of this function would be one reference more.
        inside = Counter(id(part) for key in self._below for part in gc.get_referents(objects[key]))
        return any(
            sys.getrefcount(objects[key]) - 2 > inside[key]  # one for `objects`, one for the argument
            for key in self._below
            if not is_a(objects[key], torch.Tensor)  # C++ may hold a tensor that the cycle holds too
        )
