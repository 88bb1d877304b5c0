"""The native library of the events: counting CPU allocator, what it held at its peak, and host sampler."""

from __future__ import annotations

import ctypes
from pathlib import Path

from pytest_memleak.compiled import Compiled
from pytest_memleak.errors import Unavailable

ENGINE_VARIABLE = "MEMLEAK_CPU_ENGINE"
ENGINES = ("auto", "exact", "dispatch")

_LIBRARY = Compiled(
    "the native engine",
    "engine",
    tuple(Path(__file__).with_name(name) for name in ("cpu_allocator.cpp", "at_peak.cpp", "host_sampler.cpp")),
    headers=(Path(__file__).with_name("at_peak.h"),),
)


class Held(ctypes.Structure):
    """What one place holds."""

    _fields_ = (("bytes", ctypes.c_int64), ("blocks", ctypes.c_int64))


Here = ctypes.CFUNCTYPE(ctypes.c_uint32)
Reached = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_int)

_loaded: ctypes.PyDLL | Unavailable | None = None


def library() -> ctypes.PyDLL:
    """The library, built if need be; `Unavailable` with the reason, the same one every time, if that does not work."""
    global _loaded
    if _loaded is None:
        try:
            _loaded = _declared(_LIBRARY.load())
        except Unavailable as reason:
            _loaded = reason
    if isinstance(_loaded, Unavailable):
        raise Unavailable(str(_loaded))
    return _loaded


def _declared(found: ctypes.PyDLL) -> ctypes.PyDLL:
    i64, u64, pointer = ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "install": (ctypes.c_int, []),
        "in_place": (ctypes.c_int, []),
        "adopt": (ctypes.c_int, [pointer]),
        "current": (i64, []),
        "peak": (i64, []),
        "take_peak": (i64, []),
        "take_recent_peak": (i64, []),
        "set_cap": (None, [i64]),
        "refusals": (i64, []),
        "sequence": (u64, []),
        "knows": (ctypes.c_int, [pointer]),
        "record_begin": (None, [Here, i64]),
        "record_end": (None, []),
        "record_notice": (None, [ctypes.c_int]),
        "record_read": (i64, [ctypes.POINTER(Held), i64, ctypes.POINTER(i64)]),
        "watch": (None, [Reached, i64]),
        "place_of": (ctypes.c_uint32, [pointer]),
        "live_since": (i64, [u64, ctypes.POINTER(u64), ctypes.POINTER(i64), i64]),
        "host_now": (i64, []),
        "host_begin": (ctypes.c_int, [i64]),
        "host_end": (None, []),
        "host_take_peak": (i64, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, f"memleak_{name}")
        function.restype, function.argtypes = result, arguments
    return found
