"""How much memory that torch did not allocate was in use at most: noted as each tensor on such memory is made."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from pytest_memleak.events.callbacks import called_by_native_code
from pytest_memleak.events.storages import address_of

# With more alive at once overlaps are no longer looked for, which would take ever longer: the sum is an upper bound.
_FEW = 64


class Span(NamedTuple):
    address: int
    bytes: int
    mapped: bool


class ForeignPeak:
    """Counts what `born` tells until it dies, or until a census found it: `known` says how much that is."""

    def __init__(self, known: Callable[[bool], int]) -> None:
        self._known = known
        self._alive: dict[int, tuple[Span, weakref.ref[torch.UntypedStorage]]] = {}
        self._sums = {False: 0, True: 0}
        self._peaks = {False: 0, True: 0}

    def born(self, storage: torch.UntypedStorage, mapped: bool) -> None:
        key, address, size = storage._cdata, address_of(storage), storage.nbytes()
        if not size:
            return
        self.forget(key)
        # torch.load maps a whole file and makes tensors of its parts.
        mapped = mapped or (
            self._sums[True] > 0
            and any(
                one.mapped and one.address <= address and address + size <= one.address + one.bytes
                for one, _ in list(self._alive.values())
            )
        )

        @called_by_native_code
        def gone(reference: weakref.ref[torch.UntypedStorage]) -> None:
            # torch may have given the same identity to a new storage that was noted meanwhile.
            if key in self._alive and self._alive[key][1] is reference:
                self.forget(key)

        self._alive[key] = Span(address, size, mapped), weakref.ref(storage, gone)
        self._sums[mapped] += size
        self._peaks[mapped] = max(self._peaks[mapped], self._level(mapped))

    def forget(self, key: int) -> None:
        """A census counts it from here on; or it is dead."""
        if one := self._alive.pop(key, None):
            self._sums[one[0].mapped] -= one[0].bytes

    def take(self, mapped: bool) -> int:
        """The highest since the last call; starts anew from the level now."""
        now = self._level(mapped)
        peak, self._peaks[mapped] = max(self._peaks[mapped], now), now
        return peak

    def _level(self, mapped: bool) -> int:
        if len(self._alive) > _FEW:
            return self._known(mapped) + self._sums[mapped]
        return self._known(mapped) + covered(span for span, _ in list(self._alive.values()) if span.mapped == mapped)


def covered(spans: Iterable[Span]) -> int:
    """Each byte once: two storages may well overlap (from_numpy of an array and of a slice of it)."""
    total = end = 0
    for address, size, _ in sorted(spans):
        total += max(0, address + size - max(address, end))
        end = max(end, address + size)
    return total
