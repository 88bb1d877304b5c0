"""`@pytest.mark.ranks`: one test on several processes, with one result, whatever else is promised of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from pytest_memleak.ranks.world import current
from tests.conftest import Records, Run

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(current() is not None, reason="these tests start ranks of their own"),
]

START = """
import os, pytest, torch, torch.distributed as dist
RANK = int(os.environ.get("RANK", -1))
pytestmark = pytest.mark.ranks(2)
"""


def test_bodies_fixtures_and_parameters_run_on_each_rank(
    run_on_cpu: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeconftest(
        """
        import os, pathlib, pytest
        pathlib.Path(os.environ["SEEN"], f"conftest-{os.environ.get('RANK', 'none')}").touch()
        """
    )
    monkeypatch.setenv("SEEN", str(pytester.path))
    pytester.makeini("[pytest]\nfilterwarnings = error\n")  # what torch elastic and ranks' starts warn of is nobody's
    result = run_on_cpu(
        START
        + """
@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    assert dist.get_world_size() == 2  # before the fixtures
    path = tmp_path_factory.mktemp("mine") / "file"
    path.write_text(str(RANK))
    yield path
    assert dist.is_initialized()  # after them

@pytest.mark.parametrize("name", ["a/b::c", "[x]"])
def test_together(mine, name):
    total = torch.tensor([RANK + 1.0])
    dist.all_reduce(total)
    assert (total.item(), mine.read_text()) == (3.0, str(RANK))
    assert "TORCH_DIST_INIT_BARRIER" not in os.environ  # that was for the plugin's own group
    assert os.environ["CUDA_VISIBLE_DEVICES"] if torch.cuda.is_available() else dist.get_backend() == "gloo"

@pytest.mark.skip(reason="not today")
def test_skipped(): ...

@pytest.mark.ranks(4, nnodes=2, backend=False)
def test_machines():
    assert not dist.is_initialized()
    assert (int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"]) == (RANK % 2, "2")
    assert (int(os.environ["GROUP_RANK"]), os.environ["GROUP_WORLD_SIZE"]) == (RANK // 2, "2")
    dist.init_process_group("gloo")
    dist.barrier()  # or one of them would hang up on those that are still about to be connected
    dist.destroy_process_group()
""",
        "-rs",
    )
    result.assert_outcomes(passed=3, skipped=1)
    seen = {path.name for path in pytester.path.glob("conftest-*")}
    assert seen == {"conftest-none", "conftest-0", "conftest-1", "conftest-2", "conftest-3"}


def test_failures_are_told_apart(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
def test_one():
    print(f"said by {RANK}")
    assert RANK == 0, "only the first"

def test_all():
    raise ValueError("everywhere")

def test_differently():
    raise ValueError(f"in {RANK}")

@pytest.fixture
def torn():
    yield
    assert RANK == 0, "when it was torn"

def test_teardown(torn): ...

@pytest.fixture
def unmade():
    assert RANK == 0, "before it was made"

def test_setup(unmade): ...
"""
    )
    result.assert_outcomes(passed=1, failed=3, errors=2)
    result.stdout.fnmatch_lines(
        [
            "rank 1 of 2:",
            "E*AssertionError: when it was torn",
            "rank 1 of 2:",
            "E*AssertionError: before it was made",
            "rank 1 of 2:",
            "E*AssertionError: only the first",
            "*Captured stdout of rank 0*",
            "said by 0",
            "*Captured stdout of rank 1*",
            "said by 1",
            "all 2 ranks:",
            "E*ValueError: everywhere",
            "rank * of 2:",
            "rank * of 2, *s later:",
            "FAILED test_it.py::test_one - rank 1 of 2: AssertionError: only the first*",
            "FAILED test_it.py::test_all - all 2 ranks: ValueError: everywhere",
        ]
    )


def test_expected_failures_and_skips(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
@pytest.mark.xfail(raises=AssertionError, strict=True)
def test_one_is_enough():
    assert RANK == 0

@pytest.mark.xfail(strict=True)
def test_unexpected(): ...

def test_skipped_by_all():
    pytest.skip("on all of them")

def test_skipped_by_one():
    if RANK == 1: pytest.skip("on one")

@pytest.mark.xfail(raises=AssertionError)
def test_others_wait():
    assert RANK == 0
    dist.barrier()

@pytest.mark.xfail(strict=True)
@pytest.mark.max_peak("1KiB", rank="sum")
def test_all_together():
    torch.ones(1024)

@pytest.fixture
def one_xfails():
    if RANK == 0: pytest.xfail("known")

def test_not_hidden_by_another_rank(one_xfails):
    raise ValueError("a bug of its own")

@pytest.mark.max_peak("1KiB", rank="sum")
def test_skipped_whole():
    pytest.skip("with a promise of all")
""",
        "-rs",
    )
    result.assert_outcomes(failed=2, xfailed=3, skipped=2, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*ValueError: a bug of its own",
            "*XPASS(strict)*",
            "the ranks disagree: rank 1 of 2 skipped the test (on one), rank 0 of 2 did not",
            "SKIPPED*on all of them",
        ]
    )


def test_promises_hold_on_each_rank_or_on_all_together(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        START
        + """
MIB = 1 << 18  # of float32

@pytest.mark.max_peak("5MiB")
def test_each():
    torch.ones((1 + RANK) * 4 * MIB)

@pytest.mark.max_peak("5MiB", rank=0)
def test_first():
    torch.ones((1 + RANK) * 4 * MIB)

@pytest.mark.max_peak("12MiB", rank="sum")
def test_sum():
    torch.ones((1 + RANK) * 4 * MIB)

@pytest.mark.max_peak("11MiB", rank="sum")
def test_sum_broken():
    torch.ones((1 + RANK) * 4 * MIB)

@pytest.mark.max_peak("7MiB", rank="max")
def test_highest_broken():
    torch.ones((1 + RANK) * 4 * MIB)

@pytest.mark.max_host_peak("72MiB", rank="sum")
def test_host():
    held = bytearray((1 + RANK) << 25)

@pytest.mark.max_host_peak("40MiB", rank=0)
def test_host_of_the_first():
    held = bytearray((1 + RANK) << 25)

KEPT = []

@pytest.mark.max_leak
def test_leak():
    if RANK: KEPT.append(torch.ones(MIB))

@pytest.mark.max_peak("fp16_size")
def test_no_model(): ...
""",
        "--memleak-json=out.json",
        "--junitxml=out.xml",
        "-v",
    )
    result.assert_outcomes(passed=3, failed=5, errors=1)
    result.stdout.fnmatch_lines(
        [
            "rank 1 of 2:",
            "max_peak FAILED: peak 8 MiB > limit 5 MiB*",
            "max_peak FAILED: peak 12 MiB > limit 11 MiB (allocated on 2 ranks together, *",
            "  rank 0: 4 MiB on cpu",
            "max_peak FAILED: peak 8 MiB > limit 7 MiB (allocated on the highest of 2 ranks, *",
            "max_host_peak FAILED: peak 9* MiB > limit 72*MiB (committed on 2 ranks together, *",
            "max_leak FAILED: still held after the test 1 MiB > limit 0 B*",
        ]
    )
    tests = records()
    assert {name: test["verdict"] for name, test in tests.items()} == {
        "test_each": "fail", "test_first": "pass", "test_sum": "pass", "test_sum_broken": "fail",
        "test_highest_broken": "fail", "test_leak": "fail", "test_no_model": "inconclusive",
        "test_host": "fail", "test_host_of_the_first": "pass",
    }  # fmt: skip
    peaks = {one["rank"]: one["measured"] for one in tests["test_each"]["results"] if one["check"] == "max_peak"}
    assert (peaks, tests["test_each"]["ranks"]) == ({0: 4 << 20, 1: 8 << 20}, 2)
    xml = ElementTree.parse(Path("out.xml"))
    properties = {one.get("name"): one.get("value") for one in xml.iter("property")}
    assert properties["memleak.max_peak.rank"] in ("0", "1")


def test_what_a_rank_says_of_parts_of_its_body(run_on_cpu: Run, pytester: pytest.Pytester) -> None:
    result = run_on_cpu(
        START
        + """
import unittest, warnings
warnings.warn("of the file")

class TestCase(unittest.TestCase):
    def test_fails_on_one(self):
        self.assertEqual(RANK, 0)

def test_recorded(record_property):
    record_property("loss", 3.5)
    record_property("rank", RANK)

if hasattr(pytest, "Subtests"):
    def test_subtests(subtests):
        with subtests.test("a"): pass
        with subtests.test("b"): assert RANK == 0, "in part b"
else:
    def test_subtests(): assert RANK == 0, "in part b"
""",
        "--junitxml=out.xml",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["rank 1 of 2:", "*AssertionError: 1 != 0", "rank 1 of 2*:", "E*: in part b"])
    if hasattr(pytest, "Subtests"):
        result.stdout.fnmatch_lines(["rank 1 of 2, test_subtests [[]b]:"])
    assert result.stdout.str().count("UserWarning: of the file") == 1
    properties = [(one.get("name"), one.get("value")) for one in ElementTree.parse(Path("out.xml")).iter("property")]
    assert {("loss", "3.5"), ("rank", "0"), ("rank of rank 1", "1")} <= set(properties)


def test_other_plugins_and_workers(pytester: pytest.Pytester) -> None:
    """A rerun starts new ranks, all of them; workers' ranks have stores of their own."""
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        test_it=START
        + """
import pathlib
FILE = pathlib.Path(__file__).with_name("tried")

@pytest.mark.flaky(reruns=1)
def test_second_time():
    again = FILE.exists()
    dist.barrier()
    FILE.touch()
    assert again

def test_a(): dist.barrier()
def test_b(): dist.barrier()
"""
    )
    result = pytester.runpytest_subprocess(
        "-n", "2", "--maxfail=1", "-k", "second or a or b", "--gpu-backend=cpu", "--memleak-json=out.json",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["rerun"]) == (3, 1)
    document = json.loads((pytester.path / "out.json").read_text())
    assert document["silent_workers"] == []


def test_under_an_outer_torchrun_nothing_is_started(pytester: pytest.Pytester) -> None:
    """Each of its processes is one rank; that of rank 0 reports for all."""
    pytester.makepyfile(
        test_it=START
        + """
def test_together():
    import sys
    assert "pytest_memleak.ranks.rank" not in sys.orig_argv
    dist.barrier()

def test_one(): assert RANK == 0

@pytest.fixture
def unmade(): assert RANK == 0, "not made"
def test_set_up(unmade): ...

@pytest.mark.max_peak("11MiB", rank="sum")
def test_sum():
    torch.ones((1 + RANK) << 20)

@pytest.mark.ranks(4)
def test_of_another_size(): ...

@pytest.mark.max_peak("1KiB", rank="sum")
def test_group_is_gone():
    torch.ones(1024)
    dist.destroy_process_group()
"""
    )
    command = [
        "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--redirects=3",
        "--log-dir=logs", "-m", "pytest", "--gpu-backend=cpu", "-rfs", "--memleak-json=out.json", "--junitxml=out.xml",
    ]  # fmt: skip
    environment = os.environ | {"COLUMNS": "160"}
    run = subprocess.run([sys.executable, *command], cwd=pytester.path, env=environment, capture_output=True, text=True)
    assert run.returncode == 1  # as some of its tests fail
    printed = {path.parent.name: path.read_text() for path in pytester.path.glob("logs/**/stdout.log")}
    first = printed["0"]
    assert "rank 1 of 2:" in first
    assert "FAILED test_it.py::test_one - rank 1 of 2" in first
    assert "peak 12 MiB > limit 11 MiB (allocated on 2 ranks together" in first
    assert "wants 4 ranks, and torchrun has started 2" in first
    assert "3 failed, 1 passed, 1 skipped, 1 error" in first
    assert "generated xml file" in first
    assert "generated xml file" not in printed["1"]
    failed = json.loads((pytester.path / ".pytest_cache/v/cache/lastfailed").read_text())
    assert {"test_it.py::test_set_up", "test_it.py::test_sum"} <= failed.keys()
    document = json.loads((pytester.path / "out.json").read_text())
    summed = next(test for test in document["tests"] if test["nodeid"].endswith("test_sum"))
    assert (summed["ranks"], summed["verdict"]) == (2, "fail")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one")
def test_on_a_simulated_card_each_rank_is_played(run_apart: Run, records: Records) -> None:
    """On cards of their own, without peers: shares by rank, and what a broken peak is made of."""
    result = run_apart(
        START
        + """
from torch.distributed.fsdp import fully_shard

@pytest.mark.ranks(3)
@pytest.mark.max_peak("40MiB")
def test_sharded():
    assert (dist.get_rank(), dist.get_world_size()) == (RANK, 3)
    torch.cuda.set_device(RANK)
    model = torch.nn.Linear(1024, 4097, bias=False, device="cuda")  # of 16 MiB; 4097 rows for three
    fully_shard(model)
    shard = model.weight.to_local()
    assert shard.shape[0] == (1366, 1366, 1365)[RANK]
    model(torch.ones(8, 1024, device="cuda")).sum().backward()

@pytest.mark.gpu_cap("1G")
@pytest.mark.ranks(2, nnodes=2)
def test_capped():
    torch.ones(2 << 28, device="cuda")
""",
        "--gpu-backend=simulated:h100",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*max_peak FAILED: peak * MiB > limit 40 MiB (allocated on cuda:0, predicted)",
            "*alive at the peak, by the line that allocated it*",
            "all 2 ranks:",
            "*OutOfMemoryError*",
        ]
    )
    result.stdout.no_fnmatch_line("*could not be explained*")  # the wrappers of the shards have no memory
    test = records()["test_sharded"]
    assert {one["device"]: one["how"] for one in test["results"]} == {f"cuda:{n}": "predicted" for n in range(3)}
    assert test["card"]["name"] == "NVIDIA H100 80GB HBM3"
