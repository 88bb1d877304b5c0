"""Builds this package's C++ files with the machine's compiler, on first use, and keeps them in the user's cache folder.

One file per library and torch build. A machine without a compiler does without what needs it, and says so.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pytest_memleak.caches import cache_folder
from pytest_memleak.errors import Unavailable

_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT = 180.0


@dataclass(frozen=True)
class Compiled:
    """A shared library of this package: what it is in words, its sources, and what of torch it is linked to."""

    words: str
    name: str
    sources: Sequence[Path]
    links: Sequence[str] = ("c10",)
    headers: Sequence[Path] = ()
    """What the sources include of this package."""
    checked_on: str = ""
    """Releases of torch, where the sources rely on what torch may change."""

    def load(self) -> ctypes.PyDLL:
        """Built if need be; `Unavailable` with the reason if that does not work."""
        if not sys.platform.startswith("linux"):
            raise Unavailable(f"{self.words} is made for Linux, and this is {sys.platform}")
        target = self._cached_file()
        fresh = not target.exists()
        if fresh:
            self._build(target)
        try:
            # PyDLL, which keeps the GIL: every call takes less time than giving it up and getting it back.
            return ctypes.PyDLL(str(target))
        except OSError as error:
            if fresh:
                raise Unavailable(f"{self.words} was built but does not load: {error}") from error
        # A cache folder shared with another machine, or a file that was damaged: what is built here does load.
        self._build(target)
        try:
            return ctypes.PyDLL(str(target))
        except OSError as error:
            raise Unavailable(f"{self.words} was built anew but does not load: {error}") from error

    def _torch_in_words(self) -> str:
        return f"; torch is {torch.__version__}, and this is known to fit {self.checked_on}" if self.checked_on else ""

    def _cached_file(self) -> Path:
        key = "\n".join(
            (
                torch.__version__,
                str(torch.version.git_version),
                str(torch.compiled_with_cxx11_abi()),
                str(sysconfig.get_config_var("SOABI")),
                sysconfig.get_platform(),
                *(source.read_text(encoding="utf-8") for source in (*self.sources, *self.headers)),
            )
        )
        return cache_folder(self.words) / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"

    def _command(self, compiler: list[str], output: str) -> list[str]:
        root = Path(torch.__file__).parent
        return [
            *compiler,
            "-shared",
            "-fPIC",
            "-O2",
            f"-std={_standard()}",
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            f"-I{root / 'include'}",
            *map(str, self.sources),
            f"-L{root / 'lib'}",
            *(f"-l{name}" for name in self.links),
            "-pthread",
            "-o",
            output,
        ]

    def _build(self, target: Path) -> None:
        compiler = _compiler(self.words)
        try:
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f"{target.stem}-", suffix=".tmp")
        except OSError as error:
            raise Unavailable(
                f"{self.words} cannot be written to {target.parent}: {error}; set XDG_CACHE_HOME to a folder that can"
            ) from error
        os.close(handle)
        built = Path(name)
        try:
            done = subprocess.run(
                self._command(compiler, name),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines()
                first = next((line for line in said if "error" in line.lower()), said[0] if said else "it said nothing")
                raise Unavailable(
                    f"the C++ compiler {shlex.join(compiler)} failed on {self.words} with status {done.returncode}: "
                    f"{first}{self._torch_in_words()}"
                )
            # Workers build at the same time; each renames a whole file, and any of them will do.
            built.replace(target)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"the C++ compiler {shlex.join(compiler)} took longer than {_TIMEOUT:.0f} s") from error
        except OSError as error:
            raise Unavailable(f"the C++ compiler {shlex.join(compiler)} cannot be run: {error}") from error
        finally:
            built.unlink(missing_ok=True)


def _compiler(words: str) -> list[str]:
    """The command of the C++ compiler; `CXX` is taken at its word."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    if wanted:
        return wanted
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise Unavailable(
        f"there is no C++ compiler for {words} (looked for {', '.join(_COMPILERS)}); install one, or set CXX to it"
    )


def _standard() -> str:
    """The language torch's headers are written in."""
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    return "c++20" if (major, minor) >= (2, 10) else "c++17"
