"""An explanation never raises: it tells what it found, and what failed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.ledger import graph, owners
from pytest_memleak.ledger.naming import describe
from pytest_memleak.upstream import where

Plant = Callable[[str], Any]
Explained = Callable[..., tuple[str, ...]]
ONE = "1 KiB in 1 tensor (float32 [256]): "


def test_nested_tensors_anywhere_do_no_harm(explained: Explained) -> None:
    source = "N = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]); KEPT = torch.zeros(256)"
    lines = explained(source, total=1024 + 20)
    assert lines == (
        f"{ONE}module global leaky.KEPT",
        "20 B in 1 tensor (float32 nested): module global leaky.N",
    )


RAISING = """
class Raising(torch.Tensor):
    @property
    def device(self): raise RuntimeError("no device")
    @property
    def shape(self): raise RuntimeError("no shape")
    @classmethod
    def __torch_function__(cls, *args, **kwargs): raise RuntimeError("no function")
R = torch.zeros(256).as_subclass(Raising)
"""


def test_subclasses_that_raise_are_read_as_torch_reads_them(plant: Plant) -> None:
    program = plant(RAISING)
    assert program.explained() == (f"{ONE}module global leaky.R",)
    assert graph.device_type(program.module.R) == "cpu"


def test_a_wrapper_whose_own_code_raises_hides_no_other(explained: Explained) -> None:
    source = """
class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls, size):
        return torch.Tensor._make_wrapper_subclass(cls, (size,), dispatch_sizes_strides_policy="sizes")
    @classmethod
    def __torch_dispatch__(cls, *args, **kwargs): raise KeyError("no dispatch")
W = Wrapper(4); KEPT = torch.zeros(256)
"""
    assert f"{ONE}module global leaky.KEPT" in explained(source)


def test_a_view_that_autograd_refuses_does_no_harm(explained: Explained) -> None:
    source = """
BASE = torch.zeros(256, requires_grad=True) * 1
VIEWS = BASE.split(128)
with torch.no_grad(): VIEWS[0].mul_(2)
torch.zeros(1, requires_grad=True)
"""
    assert not any("explained" in line for line in explained(source, total=1 << 20))


def test_a_working_directory_that_is_gone(
    explained: Explained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    source = """
def stream():
    h = torch.zeros(256)
    yield
STREAM = stream(); next(STREAM)
"""
    (line,) = explained(source)
    assert line == f"{ONE}local 'h' of suspended generator stream (leaky.py:5), kept by leaky.STREAM"
    assert where.shown(("/a/file.py", 3)) == "/a/file.py:3"


def test_what_fails_is_told_and_the_others_are_explained(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    program = plant("KEPT = torch.zeros(256); OTHER = {1: torch.zeros(512)}")

    def failing(path: Sequence[object], *args: Any, **options: Any) -> str:
        if any(part is program.module.OTHER for part in path):
            raise OSError("cannot\nbe read")
        return describe(path, *args, **options)

    monkeypatch.setattr(owners, "describe", failing)
    monkeypatch.setattr(owners._Explanation, "_explain_unseen", failing_always)
    assert program.explained(total=8192) == (
        f"{ONE}module global leaky.KEPT",
        "2 KiB in 1 tensor (float32 [512]): not traced: the search failed",
        "5 KiB of 8 KiB has no Python tensor",
        "could not be fully explained: OSError: cannot",
        "could not be fully explained: ZeroDivisionError: here",
    )


def failing_always(*args: Any) -> str:
    raise ZeroDivisionError("here")


def test_a_search_that_cannot_begin_is_told(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    program = plant("KEPT = torch.zeros(256)")
    monkeypatch.setattr(owners, "Search", failing_always)
    gc.enable()
    assert program.explained() == ("could not be fully explained: ZeroDivisionError: here",)
    assert gc.isenabled()
