"""Holders that Python's collector does not follow, or whose own name tells the reader nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Explained = Callable[..., tuple[str, ...]]

ONE = "1 KiB in 1 tensor (float32 [256]): "


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("A = torch.zeros(256).numpy()", f"{ONE}numpy array: leaky.A"),
        ("A = [torch.zeros(256).numpy()[3:][::2]]", f"{ONE}numpy array: leaky.A[0]"),
        ("S = torch.eye(4).to_sparse()", "80 B in 1 tensor (float32 [4, 4], sparse_coo): module global leaky.S"),
    ],
)  # fmt: skip
def test_holders_that_the_collector_does_not_follow(explained: Explained, source: str, line: str) -> None:
    assert explained(source) == (line,)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),
    reason="this torch has no MKL-DNN",
)
def test_a_tensor_in_the_layout_of_mkldnn(explained: Explained) -> None:
    (line,) = explained("K = [torch.zeros(256).to_mkldnn()]", total=1024)
    assert line == "1 KiB in 1 tensor (float32 [256], mkldnn): module global leaky.K[0]"


def test_parts_of_a_sparse_tensor_are_not_counted_again_in_what_is_unseen(explained: Explained) -> None:
    assert explained("S = torch.eye(4).to_sparse()", total=1 << 20) == (
        "80 B in 1 tensor (float32 [4, 4], sparse_coo): module global leaky.S",
        "1.000 MiB of 1 MiB has no Python tensor: held from C++ or unknown",
    )


def test_parts_of_a_sparse_tensor_that_python_still_sees(explained: Explained) -> None:
    lines = explained("S = [torch.sparse_csr_tensor(torch.arange(3), torch.tensor([0, 1]), torch.ones(2))]")
    assert lines
    assert all("module global leaky.S[0]" in line for line in lines)


def test_values_that_a_sparse_tensor_shares_with_another_count_once(explained: Explained) -> None:
    source = "V = torch.zeros(256)\nS = torch.sparse_coo_tensor(torch.arange(256)[None], V, check_invariants=False)"
    assert explained(source) == (
        "2 KiB in 1 tensor (float32 [256], sparse_coo): module global leaky.S",
        f"{ONE}module global leaky.V",
    )


def test_parameters_of_a_traced_module(explained: Explained) -> None:
    source = """
import gc
def trace():
    return torch.jit.trace(torch.nn.Sequential(torch.nn.Linear(16, 16, bias=False)), torch.ones(1, 16))
TRACED = {"net": trace()}
gc.collect()
"""
    lines = explained(source, total=1024 + 64)  # an older torch drops the weight's Python object
    assert (
        "1 KiB in 1 tensor (float32 [16, 16]): TorchScript module: leaky.TRACED['net']._actual_script_module.0.weight"
        in lines
    )


def test_a_log_records_traceback(explained: Explained) -> None:
    source = """
import logging
RECORDS = []
class Keeping(logging.Handler):
    def emit(self, record): RECORDS.append(record)
def load():
    h = torch.zeros(256)
    raise ValueError
LOGGER = logging.Logger("leaky"); LOGGER.addHandler(Keeping())
try: load()
except ValueError: LOGGER.exception("no")
"""
    assert explained(source) == (
        f"{ONE}local 'h' of frame load (leaky.py:9), kept by the traceback in exc_info of the log record"
        " leaky.RECORDS[0]",
    )


def test_a_traceback_without_its_exception(explained: Explained) -> None:
    source = """
import sys
def load():
    h = torch.zeros(256)
    raise ValueError
try: load()
except ValueError: TRACE = sys.exc_info()[2]
"""
    assert explained(source) == (
        f"{ONE}local 'h' of frame load (leaky.py:6), kept by the traceback stored in leaky.TRACE",
    )


PYTESTS = """
import types
Session = type("Session", (), {"__module__": "_pytest.main"})
FixtureDef = type("FixtureDef", (), {"__module__": "_pytest.fixtures"})
class Loader: pass
session, definition = Session(), FixtureDef()
definition.argname = "wide"
"""


@pytest.mark.parametrize(
    ("source", "owner"),
    [
        ("__loader__.session = session; session.kept = [torch.zeros(256)]", "Session.kept[0]"),
        ("__loader__.all = [definition]; definition.kept = torch.zeros(256)", "FixtureDef('wide').kept"),
    ],
)
def test_the_insides_of_pytest_are_called_so(explained: Explained, source: str, owner: str) -> None:
    lines = explained(f"{PYTESTS}__loader__ = Loader(); {source}; del session, definition")
    assert lines == (f"{ONE}pytest's own {owner}",)


def test_an_object_of_pytest_that_the_program_keeps_is_the_programs(explained: Explained) -> None:
    source = PYTESTS + "session.kept = torch.zeros(256)"
    assert explained(source) == (f"{ONE}module global leaky.session.kept",)
