"""Attributes of other packages, replaced for a while. Several patches of one attribute may overlap in any order.

A patch wraps what it finds and puts back what it found. It refuses a function that does not take the parameters it was
written for, because guessing would turn a changed release into a wrong number.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pytest_memleak.errors import Inconclusive

Wrap = Callable[[Any], Any]

_ABSENT: Any = object()
_lock = threading.RLock()


class Unrecognised(Inconclusive):
    """What should be patched is not there, or is not as it was known."""


@dataclass
class _Layer:
    patch: Patch
    below: Any
    installed: Any


@dataclass
class _Site:
    """One attribute and the patches on it, the oldest first."""

    owner: Any  # held, so that the id it is filed under stays its own
    layers: list[_Layer]


_sites: dict[tuple[int, str], _Site] = {}


class Patch:
    """While entered, `owner.name` is ``wrap(what was found)``. It may be entered again, also by other threads.

    `wrap` gets the plain function of a classmethod or staticmethod, and may be called again when a patch below goes.
    With `own`, only an attribute of `owner` itself counts: for one that is absent or inherited `wrap` gets None.
    With `yields`, what somebody else put there meanwhile stays; what was wrapped has to be harmless then.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        wrap: Wrap,
        *,
        parameters: Iterable[str] = (),
        own: bool = False,
        yields: bool = False,
    ) -> None:
        self.owner = owner
        self.name = name
        self._wrap = wrap
        self._parameters = tuple(parameters)
        self._own = own
        self._yields = yields
        self._depth = 0

    def __enter__(self) -> Patch:
        with _lock:
            if self._depth == 0:
                self._install()
            self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            self._depth -= 1
            if self._depth == 0:
                self._remove()

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__qualname__', getattr(self.owner, '__name__', self.owner))}.{self.name}"

    def _install(self) -> None:
        mine = vars(self.owner).get(self.name, _ABSENT)
        found = self._inherited() if mine is _ABSENT and not self._own else mine
        self._check(found)
        layer = _Layer(self, mine, self._wrapped(found))
        setattr(self.owner, self.name, layer.installed)
        _sites.setdefault((id(self.owner), self.name), _Site(self.owner, [])).layers.append(layer)

    def _remove(self) -> None:
        key = (id(self.owner), self.name)
        layers = _sites[key].layers
        place = next(place for place, layer in enumerate(layers) if layer.patch is self)
        foreign = vars(self.owner).get(self.name, _ABSENT) is not layers[-1].installed
        layer = layers.pop(place)
        below, gone = layer.below, layer.installed
        for upper in layers[place:]:
            if upper.below is not gone:
                break  # it was put on something foreign, which keeps calling what it found
            gone = upper.installed
            found = upper.patch._inherited() if below is _ABSENT and not upper.patch._own else below
            upper.below, upper.installed = below, upper.patch._wrapped(found)
            below = upper.installed
        if layers and (foreign or place < len(layers)):
            below = layers[-1].installed
        elif layers:
            below = layer.below  # that of the next layer, or what somebody else put on it before this one came
        if not layers:
            del _sites[key]
        if foreign and self._yields:
            return
        if below is not _ABSENT:
            setattr(self.owner, self.name, below)
        elif self.name in vars(self.owner):
            delattr(self.owner, self.name)
        if foreign:  # the last step: where warnings are errors, all is as it was by now
            warnings.warn(
                f"{self} was replaced by somebody else while it was patched; what was there before is back",
                RuntimeWarning,
                stacklevel=3,
            )

    def _inherited(self) -> Any:
        look_up = inspect.getattr_static if isinstance(self.owner, type) else getattr
        return look_up(self.owner, self.name, _ABSENT)

    def _check(self, found: Any) -> None:
        if found is _ABSENT:
            if self._own:
                return
            raise Unrecognised(f"{self} does not exist in this release; it cannot be watched")
        if not self._parameters:
            return
        try:
            known = set(inspect.signature(_function(found)).parameters)
        except (TypeError, ValueError) as error:
            raise Unrecognised(f"{self} has no signature that could be checked: {error}") from error
        missing = [parameter for parameter in self._parameters if parameter not in known]
        if missing:
            raise Unrecognised(f"{self} of this release has no parameter {', '.join(missing)}; it has {sorted(known)}")

    def _wrapped(self, found: Any) -> Any:
        if found is _ABSENT:
            return self._wrap(None)
        made = self._wrap(_function(found))
        return type(found)(made) if isinstance(found, classmethod | staticmethod) else made


def _function(found: Any) -> Any:
    return found.__func__ if isinstance(found, classmethod | staticmethod) else found
