"""Objects at addresses where others were before."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Neighbour:
    """As large as an instance of any other class: it keeps the memory around one of those for their like."""


def made_where_one_was(first: Callable[[], object], second: Callable[[], T]) -> T:
    """One that `second` makes, at the address of one of `first` that is gone. All others that were made are gone."""
    for _ in range(1000):
        around = [_Neighbour() for _ in range(500)]
        gone = first()
        around += [_Neighbour() for _ in range(500)]
        address = id(gone)
        del gone
        held = []  # or each would be made where the last one was
        for _ in range(5):  # what is made for the first few may take the place
            held.append(second())
            if id(held[-1]) == address:
                return held[-1]
    raise AssertionError("no address was used again")
