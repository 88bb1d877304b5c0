"""Builds and loads the native library: counting CPU allocator (cpu_allocator.cpp) and host sampler (host_sampler.cpp).

It is built on first use with the C++ compiler of the machine and kept in the user's cache folder, one file per torch
build. A machine without a compiler does without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

from pytest_memleak.errors import Unavailable

ENGINE_VARIABLE = "MEMLEAK_CPU_ENGINE"
ENGINES = ("auto", "exact", "dispatch")

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("cpu_allocator.cpp", "host_sampler.cpp"))
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT = 180.0

_loaded: ctypes.PyDLL | Unavailable | None = None


def library() -> ctypes.PyDLL:
    """The library, built if need be; `Unavailable` with the reason, the same one every time, if that does not work."""
    global _loaded
    if _loaded is None:
        try:
            _loaded = _load()
        except Unavailable as reason:
            _loaded = reason
    if isinstance(_loaded, Unavailable):
        raise Unavailable(str(_loaded))
    return _loaded


def _load() -> ctypes.PyDLL:
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"the native engine is made for Linux, and this is {sys.platform}")
    target = _cached_file()
    fresh = not target.exists()
    if fresh:
        _build(target)
    try:
        return _declared(ctypes.PyDLL(str(target)))
    except OSError as error:
        if fresh:
            raise Unavailable(f"the native engine was built but does not load: {error}") from error
    # A cache folder shared with another machine, or a file that was damaged: what is built here does load.
    _build(target)
    try:
        return _declared(ctypes.PyDLL(str(target)))
    except OSError as error:
        raise Unavailable(f"the native engine was built anew but does not load: {error}") from error


def _declared(found: ctypes.PyDLL) -> ctypes.PyDLL:
    # PyDLL, which keeps the GIL: every call takes less time than giving it up and getting it back.
    i64, u64, pointer = ctypes.c_int64, ctypes.c_uint64, ctypes.c_void_p
    signatures: dict[str, tuple[object, list[object]]] = {
        "install": (ctypes.c_int, []),
        "in_place": (ctypes.c_int, []),
        "adopt": (ctypes.c_int, [pointer]),
        "current": (i64, []),
        "peak": (i64, []),
        "take_peak": (i64, []),
        "set_cap": (None, [i64]),
        "refusals": (i64, []),
        "sequence": (u64, []),
        "knows": (ctypes.c_int, [pointer]),
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


def _cached_file() -> Path:
    key = "\n".join(
        (
            torch.__version__,
            str(torch.version.git_version),
            str(torch.compiled_with_cxx11_abi()),
            str(sysconfig.get_config_var("SOABI")),
            sysconfig.get_platform(),
            *(source.read_text(encoding="utf-8") for source in _SOURCES),
        )
    )
    return _cache_folder() / f"engine-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "pytest-memleak"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise Unavailable(f"the native engine has no cache folder: {error}; set XDG_CACHE_HOME to one") from error
    # Code is loaded from here: nobody else may put any in.
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(
            f"{folder} belongs to another user or can be written by others, so no code is loaded from it; "
            "run chmod 700 on it, or set XDG_CACHE_HOME to a folder of your own"
        )
    return folder


def _compiler() -> list[str]:
    """The command of the C++ compiler; `CXX` is taken at its word."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        return wanted
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise Unavailable(
        f"there is no C++ compiler for the native engine (looked for {', '.join(_COMPILERS)}); "
        "install one, or set CXX to it"
    )


def _command(compiler: list[str], output: str) -> list[str]:
    root = Path(torch.__file__).parent
    return [
        *compiler,
        "-shared",
        "-fPIC",
        "-O2",
        f"-std={_standard()}",
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-I{root / 'include'}",
        *map(str, _SOURCES),
        f"-L{root / 'lib'}",
        "-lc10",
        "-pthread",
        "-o",
        output,
    ]


def _standard() -> str:
    """The language torch's headers are written in."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return "c++20" if (major, minor) >= (2, 10) else "c++17"


def _build(target: Path) -> None:
    compiler = _compiler()
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.stem}-", suffix=".tmp")
    except OSError as error:
        raise Unavailable(
            f"the native engine cannot be written to {target.parent}: {error}; set XDG_CACHE_HOME to a folder that can"
        ) from error
    os.close(handle)
    built = Path(name)
    try:
        done = subprocess.run(
            _command(compiler, name), capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            first = next((line for line in said if "error" in line.lower()), said[0] if said else "it said nothing")
            raise Unavailable(
                f"the C++ compiler {shlex.join(compiler)} failed on the native engine with status {done.returncode}: "
                f"{first}"
            )
        # Workers build at the same time; each renames a whole file, and any of them will do.
        built.replace(target)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the C++ compiler {shlex.join(compiler)} took longer than {_TIMEOUT:.0f} s") from error
    except OSError as error:
        raise Unavailable(f"the C++ compiler {shlex.join(compiler)} cannot be run: {error}") from error
    finally:
        built.unlink(missing_ok=True)
