"""Says who holds what leaked, in lines for a failure message.

The order in which a holder is looked for: a module's global, a class attribute, an ``lru_cache``, an object that the
caller knows by name; a frame's variable, also of a traceback that is kept; a generator's or a closure's; the autograd
graph and gradients, which C++ holds; a reference cycle; and what remains is C++ or unknown.
"""

from __future__ import annotations

import gc
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_memleak.ledger.beside import beside
from pytest_memleak.ledger.foreign import hidden_bytes
from pytest_memleak.ledger.graph import GRAPH, Link, Links, device_type, read_attribute, shape_of, storage_key
from pytest_memleak.ledger.looking import type_name
from pytest_memleak.ledger.naming import describe, describe_cycle, named_parts, place
from pytest_memleak.ledger.search import Holder, Search
from pytest_memleak.ledger.standing import Root
from pytest_memleak.ledger.sweep import alike
from pytest_memleak.wording import plural, size

_UNKNOWN = "held from C++ or unknown"
_UNKNOWN_YET = "held by an expression that runs, from C++, or unknown"
_UNTRACED = "not traced: "
_FEW = 100
"""At a peak, who holds less than such a part of it is not named: many tensors are alive that nobody asks about."""
_INDEX = re.compile(r"\[[^\]]*\]")
_ROUNDING = 512  # bytes up to which a device's allocator rounds each block


def explain(
    tensors: Sequence[torch.Tensor],
    total: int,
    *,
    roots: Mapping[str, object] | None = None,
    ignore: Collection[object] = (),
    limit: int = 5,
    budget: float = 2.0,
    running: bool = False,
) -> tuple[str, ...]:
    """Who holds these tensors, and the rest of `total` bytes: at most `limit` owners, the largest first.

    Further lines tell what these leave out. `roots` are objects by a name that tells the reader more than ours would
    ("self of test_x"); `ignore` are the caller's own containers of the tensors. After `budget` seconds the search ends,
    and the lines say how much it did not reach. `running`: the program is in the middle of an expression, which may
    hold what has no name yet. Frozen objects (``gc.freeze``) hide their referrers: thaw before.
    Nothing is kept alive afterwards, and no code of the program runs. It never raises: a last line says what failed.
    """
    collecting = gc.isenabled()
    gc.disable()  # or the cycles that are to be explained could vanish halfway
    explanation = None
    try:
        search = Search({} if roots is None else roots, ignore, budget)
        search.ignore(tensors)
        explanation = _Explanation(tensors, total, search, budget, running)
        return explanation.lines(limit)
    except Exception as error:  # noqa: BLE001 - the verdict is reached without an explanation, and must be told
        return (_failure(error),)
    finally:
        if explanation is not None:
            explanation.close()
        if collecting:
            gc.enable()


@dataclass
class _Storage:
    nbytes: int
    shape: str
    tensors: list[int] = field(default_factory=list)


@dataclass
class _Owner:
    """What one line tells."""

    example: bool
    """The text names the first of several alike."""
    storages: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""

    @property
    def nbytes(self) -> int:
        return sum(nbytes for nbytes, _ in self.storages)

    def line(self, text: str) -> str:
        largest = max(self.storages)[1]
        others = "" if all(shape == largest for _, shape in self.storages) else " and others"
        count = len(self.storages)
        more = f" (and {count - 1:,} more)" if self.example and count > 1 else ""
        return f"{size(self.nbytes)} in {_tensors(count)} ({largest}{others}): {text}{more}{self.note}"


class _Explanation:
    def __init__(
        self, tensors: Sequence[torch.Tensor], total: int, search: Search, budget: float, running: bool
    ) -> None:
        self._total = total
        self._unknown = _UNKNOWN_YET if running else _UNKNOWN
        self._least = total // _FEW if running else 0
        self._out_of_time = f"{_UNTRACED}the search ended after {budget:g} s"
        self._deadline = time.monotonic() + budget
        self._search = search
        self._links: Links | None = None
        self._places: dict[int, tuple[int, Holder]] = {}
        self._owners: dict[str, _Owner] = {}
        self._linked: dict[tuple[int, str], str] = {}
        self._pending: dict[int, _Storage] = {}
        self._failures: dict[str, None] = {}
        self._slack = 0
        without: list[torch.Tensor] = []
        for tensor in tensors:
            found = storage_key(tensor)
            if found is None:
                without.append(tensor)
            elif found[1]:
                self._add(tensor, found[0], found[1], shape_of(tensor))
        known = set(self._pending)
        for tensor in without:
            # A wrapper's parts are tensors that Python sees. A tensor's id is no storage's address.
            if nbytes := hidden_bytes(tensor, known):
                layout = str(read_attribute(tensor, "layout")).removeprefix("torch.")
                self._add(tensor, id(tensor), nbytes, f"{shape_of(tensor)}, {layout.removeprefix('_')}")
        self._leaked = frozenset(self._pending)
        self._storage_of = {key: storage for storage, one in self._pending.items() for key in one.tensors}
        self._python_bytes = self._waiting = sum(storage.nbytes for storage in self._pending.values())

    def _add(self, tensor: torch.Tensor, key: int, nbytes: int, shape: str) -> None:
        if key not in self._pending:
            self._pending[key] = _Storage(nbytes, shape)
            self._slack += 0 if device_type(tensor) == "cpu" else _ROUNDING
        self._pending[key].tensors.append(self._search.keep(tensor))

    def close(self) -> None:
        self._search.close()
        if self._links is not None:
            self._links.close()

    def lines(self, limit: int) -> tuple[str, ...]:
        for key in sorted(self._pending, key=lambda key: -self._pending[key].nbytes):
            if self._waiting < self._least:
                break  # all together they are not worth a line
            if key in self._pending:
                self._attempt(key)
        rest = self._attempt_unseen(self._total - self._python_bytes)
        missed = [item for item in self._owners.items() if item[0].startswith(_UNTRACED)]
        untraced = [owner.line(text) for text, owner in missed if owner.nbytes >= self._least]
        traced = [item for item in self._owners.items() if not item[0].startswith(_UNTRACED)]
        owners = sorted(traced, key=lambda item: -item[1].nbytes)
        shown = [item for item in owners[:limit] if item[1].nbytes >= self._least]
        lines = [owner.line(text) for text, owner in shown]
        left = [nbytes for _, owner in owners[len(shown) :] for nbytes, _ in owner.storages]
        unasked = [storage.nbytes for storage in self._pending.values()]
        if left or unasked:
            others = "other owners" if unasked else plural(len(owners) - len(shown), "other owner")
            lines.append(f"{size(sum(left) + sum(unasked))} in {_tensors(len(left) + len(unasked))}: {others}")
        return (*lines, *untraced, *([rest] if rest else []), *self._failures)

    def _attempt(self, key: int) -> None:
        try:
            self._explain(key)
        except Exception as error:  # noqa: BLE001 - what a program leaves behind may be anything; the others are told
            self._failures[_failure(error)] = None
            self._settle(f"{_UNTRACED}the search failed", [key])

    def _attempt_unseen(self, missing: int) -> str:
        try:
            return self._explain_unseen(missing)
        except Exception as error:  # noqa: BLE001 - as above
            self._failures[_failure(error)] = None
            return f"{size(missing)} of {size(self._total)} has no Python tensor"

    def _explain(self, key: int) -> None:
        if self._search.over:
            self._settle(self._out_of_time, [key])
            return
        storage = self._pending[key]
        holder = self._search.holder_of(storage.tensors)
        if holder.kind in ("named", "unnamed"):
            found = self._held_alike(named_parts(self._objects(holder.path)))
            text = self._named(holder, storage)
            # Of several of a size the first in its container is named, whichever was met first: in every run the same.
            first = next((one for one in found if self._same_size(one, key)), key)
            if first != key and (other := self._search.holder_of(self._pending[first].tensors)).kind == holder.kind:
                named = self._named(other, self._pending[first])
                # It may have a better name besides, which says nothing of the others.
                text = named if _INDEX.sub("[]", named) == _INDEX.sub("[]", text) else text
            self._settle(text, [key, *found], example=True)
            return
        link = self._link(key, holder)
        if link is not None:
            alike_keys = [other for other in self._pending if self._same_link(link, self._link(other))]
            self._settle(self._link_text(link), [key, *alike_keys], example=True)
        elif holder.kind == "cycle":
            self._settle(self._cycle_text(holder), [key, *self._storages_held_by(holder.ancestors)])
        elif holder.kind == "unfinished":
            self._settle(self._out_of_time if self._search.over else f"{_UNTRACED}too many objects refer to it", [key])
        else:
            path = named_parts(self._objects(holder.path))
            words = f" ({describe(path)})" if len(path) > 1 else ""
            found = self._held_alike(path) if words else []
            self._settle(self._unknown + words, [key, *found], example=bool(words))

    def _named(self, holder: Holder, storage: _Storage) -> str:
        path = self._objects(holder.path)
        text = describe(path, self._root(holder), beside=beside(path, storage.tensors))
        return text + (" (in a reference cycle that the collector has not freed)" if holder.cycle else "")

    def _held_alike(self, path: Sequence[object]) -> list[int]:
        return [self._storage_of[tensor] for tensor in alike(path, self._storage_of)]

    def _same_size(self, one: int, key: int) -> bool:
        return one in self._pending and self._pending[one].nbytes == self._pending[key].nbytes

    def _settle(self, text: str, keys: Sequence[int], example: bool = False) -> None:
        owner = self._owners.setdefault(text, _Owner(example))
        for key in keys:
            storage = self._pending.pop(key, None)
            if storage is not None:
                owner.storages.append((storage.nbytes, storage.shape))
                self._waiting -= storage.nbytes

    def _cycle_text(self, holder: Holder) -> str:
        words = describe_cycle(self._objects(holder.cycle))
        held = describe(self._objects(holder.path))
        return f"reference cycle (garbage that the collector has not freed): {words}, which holds {held}"

    def _storages_held_by(self, keys: Sequence[int]) -> list[int]:
        parts = gc.get_referents(*self._objects(keys))
        return [self._storage_of[id(part)] for part in parts if id(part) in self._storage_of]

    def _objects(self, keys: Sequence[int]) -> list[object]:
        return [self._search.objects[key] for key in keys]

    def _root(self, holder: Holder) -> Root | None:
        return self._search.roots.get(holder.path[0]) or self._search.running.get(holder.path[0])

    # What C++ holds

    def _all_links(self) -> Links:
        if self._links is None:
            leaked: list[Any] = [self._search.objects[key] for key in self._storage_of]
            self._links = Links(leaked, self._deadline)
            self._search.ignore(self._links.holders, self._links.nodes)
        return self._links

    def _link(self, key: int, holder: Holder | None = None) -> Link | None:
        links = self._all_links()
        link = links.by_storage.get(key)
        if link is None and holder is not None:  # a tensor that a custom autograd function keeps on its context
            link = next((links.by_node[one] for one in holder.ancestors if one in links.by_node), None)
        own = link is not None and self._storage_of.get(link.holder) == key
        return None if own else link

    def _same_link(self, link: Link, other: Link | None) -> bool:
        return other is not None and self._link_key(link) == self._link_key(other)

    def _link_key(self, link: Link) -> tuple[int, str]:
        return self._place_of(link.holder)[0], link.kind

    def _place_of(self, key: int) -> tuple[int, Holder]:
        """Who holds what holds tensors, and the id of the first of those that are held alike."""
        if key not in self._places:
            links = self._all_links()
            holder = self._search.holder_of([self._search.keep(links.holders[key])])
            self._places[key] = key, holder
            if holder.kind in ("named", "unnamed"):
                for other in alike(named_parts(self._objects(holder.path)), links.holders):
                    self._places.setdefault(other, (key, holder))
        return self._places[key]

    def _link_text(self, link: Link) -> str:
        key = self._link_key(link)
        if key in self._linked:
            return self._linked[key]
        holder = self._place_of(link.holder)[1]
        path = self._objects(holder.path)
        if holder.kind in ("named", "unnamed"):
            words = (place if link.kind else describe)(path, self._root(holder), link.label)
        else:
            why = self._cycle_text(holder) if holder.kind == "cycle" else self._unknown
            words = f"tensor{link.label}, the tensor: {why}" if link.kind in ("", GRAPH) else why
        self._linked[key] = f"{link.kind}: {words}" if link.kind else words
        return self._linked[key]

    def _explain_unseen(self, missing: int) -> str:
        """Adds what C++ alone holds, and returns the line about what nothing explains."""
        if missing <= self._slack:
            return ""
        links = self._all_links()
        owners: dict[str, _Owner] = {}
        for key, link in links.by_storage.items():
            if key not in links.alive and not self._search.over:
                owner = owners.setdefault(self._link_text(link), _Owner(True))
                owner.storages.append((link.nbytes, link.shape))
        found = sum(owner.nbytes for owner in owners.values())
        for text, owner in owners.items():
            known = self._owners.setdefault(text, _Owner(True))
            known.storages += owner.storages
            if found > missing + self._slack:
                known.note = f" (older memory too: at most {size(missing)} of what C++ holds is new)"
        if missing - found <= max(self._slack, self._least):
            return ""
        cut = "" if links.complete and not self._search.over else "; not all autograd graphs were read in time"
        return f"{size(missing - found)} of {size(self._total)} has no Python tensor: {self._unknown}{cut}"


def _failure(error: Exception) -> str:
    try:
        reason = f"{type_name(type(error))}: {error}"
    except Exception:  # noqa: BLE001 - an error of the program's own kind may not be able to say what it is
        reason = type_name(type(error))
    return f"could not be fully explained: {reason.splitlines()[0]:.200}"


def _tensors(count: int) -> str:
    return f"{count:,} {'tensor' if count == 1 else 'tensors'}"
