"""The native part of the simulated card."""

from __future__ import annotations

import ctypes
from pathlib import Path

from pytest_memleak.compiled import Compiled

_LIBRARY = Compiled("the simulated card", "card", (Path(__file__).with_name("device.cpp"),), ("c10", "torch_cpu"))

Take = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64, ctypes.c_int)
Give = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def load() -> ctypes.PyDLL:
    """Built if need be, which takes some ten seconds once; `Unavailable` with the reason if that does not work."""
    found = _LIBRARY.load()
    signatures: dict[str, tuple[object, list[object]]] = {
        "space": (ctypes.c_int, [ctypes.c_uint64, ctypes.c_uint64]),
        "refuse": (None, [ctypes.c_char_p]),
        "device": (ctypes.c_int, []),
        "set_device": (None, [ctypes.c_int]),
        "on": (None, [ctypes.c_int, Take, Give]),
        "off": (None, []),
        "end": (None, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(found, f"memleak_card_{name}")
        function.restype, function.argtypes = result, arguments
    return found
