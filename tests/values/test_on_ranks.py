"""`no_nan` and `same_on_all_ranks` where there are ranks: who differs from rank 0, and who says nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed

from tests.conftest import Records, Run
from tests.values.on_ranks import Told, run_on_ranks

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")

IMPORTS = """
import os
import pytest, torch
import torch.distributed as dist
import pytest_memleak

RANK = int(os.environ["RANK"])
"""

TESTS = (
    IMPORTS
    + """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

class Model(torch.nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(8, 8)
        self.register_buffer("table", torch.arange(6.0))
        self.register_buffer("fleeting", torch.tensor([1.0, float("nan")]), persistent=False)
        self.register_buffer("halved", torch.ones(5, dtype=torch.bfloat16))
        self.register_buffer("small", torch.ones(5).to(torch.float8_e4m3fn))

@pytest.mark.same_on_all_ranks
def test_the_same():
    Model()

@pytest.mark.same_on_all_ranks
def test_of_their_own_seed():
    model = Model(seed=RANK)

@pytest.mark.same_on_all_ranks
def test_broadcast():
    model = Model(seed=RANK)
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)

@pytest.mark.same_on_all_ranks
def test_other_buffers():
    model = Model()
    if RANK:
        model.table = model.table + torch.tensor([0.0, 0, 0, 0, 0, 1e-6])
        model.fleeting[1] = 2.0
        model.halved = model.halved.half()
        model.small = torch.ones(6).to(torch.float8_e4m3fn)
        model.layer.bias = torch.nn.Parameter(torch.empty(8, device="meta"))
        model.register_buffer("more", torch.ones(1))

@pytest.mark.same_on_all_ranks
def test_one_rank_fails():
    Model()
    if RANK:
        raise ValueError("its own failure")

@pytest.mark.same_on_all_ranks
def test_one_rank_is_skipped():
    Model()
    if not RANK:
        pytest.skip("not here")

@pytest.mark.same_on_all_ranks
def test_one_rank_has_no_model():
    if RANK:
        Model()

@pytest.mark.same_on_all_ranks
def test_sharded():
    mesh = init_device_mesh("cpu", (2,))
    model = Model()
    model.layer.weight = torch.nn.Parameter(distribute_tensor(torch.randn(8, 8) + RANK, mesh, [Shard(0)]))
    replica = distribute_tensor(torch.ones(8), mesh, [Replicate()])
    replica.to_local()[3] += RANK
    model.layer.bias = torch.nn.Parameter(replica)

@pytest.mark.no_nan(poison=False)
def test_a_shard_with_nan():
    mesh = init_device_mesh("cpu", (2,))
    model = torch.nn.Linear(8, 8)
    model.weight = torch.nn.Parameter(distribute_tensor(torch.ones(8, 8), mesh, [Shard(0)]))
    if RANK:
        model.weight.to_local().data[2, 5] = float("nan")

def test_as_function():
    pytest_memleak.same_on_all_ranks(Model())
    with pytest.raises(AssertionError, match="layer.weight"):
        pytest_memleak.same_on_all_ranks(Model(seed=RANK))
"""
)


def _verdicts(told: Told) -> dict[str, str]:
    return {name: test["results"][0]["verdict"] for name, test in told.items()}


def _result(told: Told, name: str) -> dict[str, Any]:
    (result,) = told[name]["results"]
    return dict(result)


def test_two_ranks(pytester: pytest.Pytester) -> None:
    first, second = run_on_ranks(pytester, TESTS)
    assert "did not say" not in f"{first} {second}", "somebody was waited for to the end"
    common = {
        "test_the_same": "pass",
        "test_of_their_own_seed": "fail",
        "test_broadcast": "pass",
        "test_other_buffers": "fail",
        "test_one_rank_has_no_model": "inconclusive",
        "test_sharded": "fail",
    }
    assert _verdicts(first) == {
        **common,
        "test_one_rank_fails": "inconclusive",
        "test_one_rank_is_skipped": "not judged",
        "test_a_shard_with_nan": "pass",
    }
    assert _verdicts(second) == {
        **common,
        "test_one_rank_fails": "not judged",
        "test_one_rank_is_skipped": "inconclusive",
        "test_a_shard_with_nan": "fail",
    }
    for told in (first, second):
        seed = _result(told, "test_of_their_own_seed")
        assert seed["message"].startswith("same_on_all_ranks FAILED: 2 tensors are not rank 0's, seen on rank ")
        assert seed["details"][0].startswith("layer.weight (parameter) is float32 [8, 8]: ")
        assert "on rank 1, and float32 [8, 8]: " in seed["details"][0]
        others = _result(told, "test_other_buffers")
        assert "6 tensors are not rank 0's" in others["message"]
        text = "\n".join(others["details"])
        assert "table (persistent buffer) is float32 [6]: 0, 1, 2, 3, …, from 0 to 5 on rank 1" in text
        assert "layer.bias (parameter) is float32 [8], unmaterialized (on meta) on rank 1, and float32 [8]: " in text
        assert "fleeting (non-persistent buffer) is float32 [2]: 1, 2, from 1 to 2 on rank 1" in text
        assert "halved (persistent buffer) is float16 [5]" in text
        assert "and bfloat16 [5]" in text
        assert "and 1 more" in text
        sharded = _result(told, "test_sharded")
        assert "1 tensor is not rank 0's" in sharded["message"]
        assert "1 sharded parameter is not compared" in sharded["details"]
    assert "rank 1 has nothing to compare: its test ended with ValueError" in str(first["test_one_rank_fails"])
    assert "rank 0 has nothing to compare: no model" in str(second["test_one_rank_has_no_model"])
    shard = _result(second, "test_a_shard_with_nan")
    assert shard["message"] == (
        "no_nan FAILED: weight: 3.12 % of 32 values are NaN, the first at [2, 5] on rank 1 of 2 (measured)"
    )
    assert "its shard" in shard["details"][0]


def test_with_the_marker_that_makes_ranks(run_apart: Run, records: Records) -> None:
    result = run_apart(
        """
import os
import pytest, torch

@pytest.mark.ranks(2)
@pytest.mark.no_nan
@pytest.mark.same_on_all_ranks
def test_both():
    model = torch.nn.Linear(3, 3)
    torch.nn.init.ones_(model.weight)
    torch.nn.init.zeros_(model.bias)
    if os.environ["RANK"] == "1":
        model.bias.data[2] = float("nan")
""",
        "--gpu-backend=cpu",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    told = records()["test_both"]["results"]
    assert sorted((one["check"], one["verdict"]) for one in told) == [
        ("no_nan", "fail"),
        ("no_nan", "pass"),
        ("same_on_all_ranks", "fail"),
        ("same_on_all_ranks", "fail"),
    ]
    result.stdout.fnmatch_lines(["*bias: 33.3 % of 3 values are NaN, the first at ?2? on rank 1 of 2 (measured)"])


SILENT = (
    IMPORTS
    + """
@pytest.mark.same_on_all_ranks
def test_two_models():
    dist.barrier()  # one that is late to start is none that says nothing
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(3, 3)
    for parameter in second.parameters():
        parameter.data.fill_(RANK)
    for parameter in first.parameters():
        parameter.data.fill_(0)

if RANK == 0:
    @pytest.mark.same_on_all_ranks
    def test_here_alone():
        torch.nn.Linear(2, 2)

@pytest.mark.same_on_all_ranks
def test_afterwards():
    dist.barrier()  # rank 0 comes when it has waited in vain
    model = torch.nn.Linear(2, 2)
    for parameter in model.parameters():
        parameter.data.fill_(3)
"""
)


def test_a_rank_that_says_nothing_is_waited_for_so_long(pytester: pytest.Pytester) -> None:
    first, second = run_on_ranks(pytester, SILENT, PATIENCE="5")
    alone = _result(first, "test_here_alone")
    assert alone["verdict"] == "inconclusive"
    assert "rank 1 did not say what it found within 5 s" in alone["message"]
    for told in (first, second):
        both = _result(told, "test_two_models")
        assert (both["verdict"], "2 tensors are not" in both["message"]) == ("fail", True)
        assert both["details"][0].startswith("model 2: weight (parameter) is float32 [3, 3]: ")
        assert _result(told, "test_afterwards")["verdict"] == "pass"
