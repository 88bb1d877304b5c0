"""A baseline on a card that is not there: its numbers are the same whatever ran before, to the byte."""

from __future__ import annotations

import pytest
import torch

from tests.hooks.baselines import FILE, MIB, peaks, told

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")

SUITE = """
import os, pytest, torch

def fill(size): return torch.empty(size, dtype=torch.uint8, device="cuda")

@pytest.fixture(scope="session")
def held(): return fill(3 * 1024**2)

def test_1_leaves_a_hole_of_17_mib(held): ...

def test_2_would_be_given_all_of_it():
    fill(int(16.5 * 1024**2) + int(os.environ.get("MORE", 0)))

def test_1_leaves_a_block_of_24_mib(): fill(24 * 1024**2)

def test_2_would_split_it():
    fill(int(21.5 * 1024**2))  # in a block of its own the rest is too small to be split off

def test_3_product():  # the library's workspace is no longer there from the test before
    torch.zeros(64, 64, device="cuda") @ torch.zeros(64, 64, device="cuda")

def test_4_product():
    torch.zeros(64, 64, device="cuda") @ torch.zeros(64, 64, device="cuda")

@pytest.mark.gpu_cap("1G")
def test_5_capped(): fill(512)

@pytest.mark.gpu_cap("1G")
def test_6_out_of_memory():
    with pytest.raises(torch.OutOfMemoryError): fill(2 * 1024**3)
"""
ARGS = ("-p", "no:cacheprovider", "--gpu-backend=simulated", f"--memleak-baseline={FILE}", "--memleak-json=out.json")


def test_numbers_are_exact_and_do_not_depend_on_the_cache(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=new", "-k", "not test_1").assert_outcomes(passed=6)
    found = peaks(pytester.path)
    assert found["test_2_would_be_given_all_of_it"] == 16.5 * MIB
    assert found["test_2_would_split_it"] == 22 * MIB
    assert found["test_3_product"] == found["test_4_product"] > 0
    lines = (pytester.path / FILE).read_text().splitlines()
    assert sum(" simulated NVIDIA-H200 torch-" in line for line in lines) == 4
    assert sum(f" simulated NVIDIA-H200:{1 << 30} torch-" in line for line in lines) == 1
    pytester.runpytest_subprocess(*ARGS).assert_outcomes(passed=8)
    assert (told(pytester.path)["lower"], told(pytester.path)["higher"]) == ([], [])
    monkeypatch.setenv("MORE", "1")
    result = pytester.runpytest_subprocess(*ARGS, "-k", "test_2_would_be or test_4")
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["baseline FAILED: peak 17,302,016 B > recorded 17,301,504 B: +512 B (+0.0 %), *"])
    assert told(pytester.path)["lower"] == []


LOADS = """
import os, torch, transformers

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(os.environ["CORES"])])
torch.set_num_threads(int(os.environ["CORES"]))

def test_load_and_train(checkpoint):
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, vocab_size=1000
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint(config), device_map="cuda")
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(2, 64, dtype=torch.long, device="cuda")
    model(ids, labels=ids).loss.backward()
    optimizer.step()
"""


def test_a_load_by_several_threads_takes_the_same_on_any_number_of_cores(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    pytest.importorskip("accelerate")
    pytester.makepyfile(test_it=LOADS)
    monkeypatch.setenv("CORES", "1")
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=new").assert_outcomes(passed=1)
    assert peaks(pytester.path)["test_load_and_train"] > MIB
    monkeypatch.setenv("CORES", "8")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    pytester.runpytest_subprocess(*ARGS).assert_outcomes(passed=1)
    assert (told(pytester.path)["compared"], told(pytester.path)["lower"]) == (1, [])
