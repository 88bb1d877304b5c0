"""The native library is built once, privately and whole; a machine that cannot build it says why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LOAD = """
from pytest_memleak.errors import Unavailable
from pytest_memleak.events import native
try:
    native.library()
    print("built")
except Unavailable as reason:
    print(reason)
"""

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


def start(script: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    settings = os.environ | {"XDG_CACHE_HOME": str(cache)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", script], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(script: str, cache: Path, **environment: str) -> str:
    process = start(script, cache, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


@needs_compiler
def test_two_processes_build_into_an_empty_cache_at_once(tmp_path: Path) -> None:
    both = [start(LOAD, tmp_path) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["built", "built"]
    (library,) = (tmp_path / "pytest-memleak").iterdir()
    assert library.suffix == ".so"
    assert (tmp_path / "pytest-memleak").stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_what_is_cached_is_not_built_again_and_what_is_damaged_is(tmp_path: Path) -> None:
    assert run(LOAD, tmp_path) == "built"
    assert run(LOAD, tmp_path, CXX="/bin/false") == "built"
    (library,) = (tmp_path / "pytest-memleak").iterdir()
    library.write_bytes(b"not a library")
    assert run(LOAD, tmp_path) == "built"
    assert library.stat().st_size > 1000


def test_a_failing_compiler_is_named_and_asked_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\necho >> {calls}\necho 'x.cpp:1: error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    said = run(LOAD + LOAD, tmp_path, CXX=str(compiler)).splitlines()
    assert len(said) == 2
    assert said[0] == said[1]
    assert f"{compiler} failed" in said[0]
    assert "error: no such header" in said[0]
    assert calls.read_text() == "\n"
    assert list((tmp_path / "pytest-memleak").iterdir()) == []


def test_a_compiler_that_hangs_is_given_up(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\nexec sleep 60\n")
    compiler.chmod(0o755)
    script = LOAD.replace("try:", "from pytest_memleak import compiled; compiled._TIMEOUT = 0.2\ntry:")
    assert "took longer than" in run(script, tmp_path, CXX=str(compiler))


def test_no_compiler_at_all(tmp_path: Path) -> None:
    assert "there is no C++ compiler" in run(LOAD, tmp_path, PATH="", CXX="")


def test_a_compiler_that_does_not_exist(tmp_path: Path) -> None:
    assert "/no/such/compiler cannot be run" in run(LOAD, tmp_path, CXX="/no/such/compiler")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "no cache folder" in run(LOAD, tmp_path / "file")


def test_a_cache_that_others_can_write_is_not_loaded_from(tmp_path: Path) -> None:
    folder = tmp_path / "pytest-memleak"
    folder.mkdir()
    folder.chmod(0o777)
    assert "can be written by others" in run(LOAD, tmp_path)
