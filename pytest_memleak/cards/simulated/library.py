"""The native part of the simulated card."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from pytest_memleak.compiled import Compiled

_NATIVE = Path(__file__).with_name("native")
CHECKED_ON = "2.6, 2.11, 2.14 (built for CUDA) and 2.13 (for the CPU)"
"""The releases of torch whose private parts the card is known to fit."""

_LIBRARY = Compiled(
    "the simulated card",
    "card",
    (_NATIVE / "card.cpp",),
    # card.cpp includes all others.
    headers=tuple(sorted({*_NATIVE.glob("*.cpp"), *_NATIVE.glob("*.h")} - {_NATIVE / "card.cpp"})),
    links=("c10", "torch_cpu"),
    checked_on=CHECKED_ON,
)

Take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int64)
Give = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
Answer = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)


@functools.cache
def load() -> ctypes.PyDLL:
    """Built if need be, which takes some twenty seconds once; `Unavailable` with the reason if that does not work.

    Once in a process: what it keeps is kept once, also where its sources are changed meanwhile.
    """
    found = _LIBRARY.load()
    signatures: dict[str, tuple[object, list[object]]] = {
        "space": (ctypes.c_int, [ctypes.c_uint64, ctypes.c_uint64]),
        "refuse": (None, [ctypes.c_char_p, ctypes.c_int]),
        "device": (ctypes.c_int, []),
        "set_device": (None, [ctypes.c_int]),
        "stream": (ctypes.c_int64, [ctypes.c_int]),
        "set_stream": (None, [ctypes.c_int, ctypes.c_int64]),
        "allocator": (ctypes.c_uint64, []),
        "copy_storage": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
        "replace_storage": (None, [ctypes.c_void_p, ctypes.c_void_p]),
        "values": (None, [Answer, ctypes.c_double, ctypes.c_int]),
        "facts": (None, [ctypes.c_int] * 6),
        "workspace": (None, [ctypes.c_int, ctypes.c_int64]),
        "release_workspaces": (None, []),
        "take_over": (None, [ctypes.c_char_p, ctypes.c_char_p]),
        "on": (None, [ctypes.c_int, Take, Give]),
        "off": (None, []),
        "threads": (ctypes.c_char_p, []),
        "here": (None, [ctypes.POINTER(ctypes.c_uint64), ctypes.c_int]),
        "set_aside": (None, []),
        "take_back": (None, []),
        "end": (None, []),
        "host_on": (None, [ctypes.c_void_p, ctypes.c_void_p]),
        "host_off": (None, []),
        "host_take": (None, [ctypes.POINTER(ctypes.c_int64)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, f"memleak_card_{name}")
        function.restype, function.argtypes = result, arguments
    return found
