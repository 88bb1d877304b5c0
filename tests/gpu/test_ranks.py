"""Tests on ranks with a GPU each: NCCL, peaks of each card, and cards that are given to one test at a time."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Records

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

START = """
import os, pytest, time, torch, torch.distributed as dist
RANK = int(os.environ.get("RANK", -1))
pytestmark = pytest.mark.ranks(2)
"""


def test_each_rank_has_a_card(pytester: pytest.Pytester, records: Records) -> None:
    pytester.makepyfile(
        test_it=START
        + """
def ones(count):
    return torch.ones(count, dtype=torch.uint8, device="cuda")

@pytest.mark.max_peak("48MiB")
@pytest.mark.max_leak
def test_reduced():
    assert dist.get_backend(), torch.cuda.current_device() == RANK
    total = torch.full((1 << 20,), RANK + 1.0, device="cuda")
    dist.all_reduce(total)
    assert total[-1].item() == 3.0
    on_cpu = torch.ones(3)
    dist.all_reduce(on_cpu)
    assert on_cpu[0] == 2

@pytest.mark.max_peak("24MiB")
def test_one_breaks():
    ones((1 + RANK) * 16 << 20)

@pytest.mark.max_peak("47MiB", rank="sum")
def test_together_break():
    ones((1 + RANK) * 16 << 20)

@pytest.mark.gpu_cap("1G")
def test_capped():
    ones((1 + 2 * RANK) << 29)

def test_waits():
    if RANK: time.sleep(1000)
    dist.barrier()
    torch.cuda.synchronize()
"""
    )
    result = pytester.runpytest_subprocess(
        "--memleak-json=out.json", "--gpu-backend=real", "--memleak-ranks-timeout=60", "-p", "no:cacheprovider"
    )
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(
        [
            "rank 1 of 2:",
            "max_peak FAILED: peak 32 MiB > limit 24 MiB (allocated on cuda:1, *",
            "max_peak FAILED: peak 48 MiB > limit 47 MiB (allocated on 2 ranks together, *",
            "rank 1 of 2:",
            "*OutOfMemoryError*",
            "rank 1 of 2 hung in its body: at test_it.py:*",
            "rank 0 of 2 waited for others in its body: in barrier, called at test_it.py:*",
        ]
    )
    peaks = {
        (one["rank"], one["device"]): one["measured"]
        for one in records()["test_one_breaks"]["results"]
        if one["check"] == "max_peak"
    }
    assert (peaks[0, "cuda:0"], peaks[1, "cuda:1"]) == (16 << 20, 32 << 20)


def test_workers_take_turns(pytester: pytest.Pytester) -> None:
    """All cards of this machine are wanted by each test: none runs beside another one."""
    pytest.importorskip("xdist")
    count = torch.cuda.device_count()
    pytester.makepyfile(
        test_it=f"""
import os, pathlib, pytest, time, torch, torch.distributed as dist

@pytest.mark.ranks({count})
@pytest.mark.parametrize("turn", range(4))
def test_alone(turn):
    busy = pathlib.Path(__file__).with_name("busy")
    if dist.get_rank() == 0:
        busy.mkdir()  # fails if there is another one
    dist.barrier()
    time.sleep(0.5)
    dist.barrier()
    if dist.get_rank() == 0:
        busy.rmdir()
"""
    )
    result = pytester.runpytest_subprocess("-n", "2", "--gpu-backend=real", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)


def test_more_ranks_than_cards(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.ranks({torch.cuda.device_count() + 1})\ndef test_it(): ...\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ranks want a GPU each, and there are *--gpu-backend=cpu*"])
