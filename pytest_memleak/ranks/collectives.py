"""Collectives of a rank whose peers are not there, in C++: nothing of Python may look at the tensors on their way.

A tensor that Python has seen counts one more reference, and autograd then adds gradients in another way.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

from pytest_memleak.compiled import Compiled

CHECKED_ON = "2.6 to 2.13"

_LIBRARY = Compiled(
    "collectives of a played rank",
    "ranks",
    (Path(__file__).parent / "native" / "collectives.cpp",),
    links=("c10", "torch_cpu", "torch"),
    checked_on=CHECKED_ON,
)


def load() -> ctypes.PyDLL:
    """Built if need be; `Unavailable` with the reason if that does not work."""
    found = _LIBRARY.load()
    for name in ("on", "off"):
        getattr(found, f"memleak_ranks_{name}").restype = None
    return found


@contextlib.contextmanager
def without_peers() -> Iterator[None]:
    """Until the end what a collective receives is memory of the right size, and values that nobody knows."""
    native = load()
    native.memleak_ranks_on()
    try:
        yield
    finally:
        native.memleak_ranks_off()
