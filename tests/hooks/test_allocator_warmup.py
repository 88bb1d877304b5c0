"""`allocator_warmup` and `warmup_spy` in tests that load on a simulated card, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Records, Run

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="tests/gpu has them for a real card")

since_5_2 = pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 2), reason="before 5.2 it went by what is free"
)

# With 32 layers an fp16 model of 12.55 GiB; without any number a small one, which loads at once.
LOAD = """
import pytest, torch

GIB = 1024**3

def load(checkpoint, layers=0, device_map="cuda:0"):
    from transformers import AutoModelForCausalLM, LlamaConfig
    size = 4096 if layers else 256
    config = LlamaConfig(
        hidden_size=size, num_hidden_layers=layers or 1, intermediate_size=11008, num_attention_heads=32
    )
    folder = checkpoint(config, dtype="float16", sparse=True)
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float16, device_map=device_map)
"""


@since_5_2
def test_both_bugs_are_red(run_apart: Run, records: Records) -> None:
    result = run_apart(
        LOAD
        + """
@pytest.mark.gpu_cap("16G", told=False)
@pytest.mark.allocator_warmup("fits")
def test_a_cap_that_nobody_is_told_of(checkpoint, warmup_spy):
    with pytest.raises(torch.OutOfMemoryError):
        load(checkpoint, layers=60)
    seen = warmup_spy["cuda:0"]
    assert (seen.called, seen.cap, seen.fits, seen.refused) == (True, 16 * GIB, False, True)
    assert seen.total > 100 * GIB and seen.free > 100 * GIB and 20 * GIB < seen.asked == warmup_spy.asked

@pytest.mark.gpu_cap("24G", free="6G")
@pytest.mark.allocator_warmup("fits")
def test_more_than_is_free(checkpoint, warmup_spy):
    with pytest.raises(torch.OutOfMemoryError):
        load(checkpoint, layers=32)
    seen = warmup_spy["cuda:0"]
    assert (seen.total, seen.cap, seen.free) == (24 * GIB, 24 * GIB, 6 * GIB)

@pytest.mark.gpu_cap("24G", free="6G")
@pytest.mark.allocator_warmup("fits")
def test_dies_of_it(checkpoint):
    load(checkpoint, layers=32)

@pytest.mark.gpu_cap("1G")
@pytest.mark.allocator_warmup("fits")
def test_less_than_nothing(checkpoint):
    load(checkpoint)

@pytest.mark.gpu_cap("24G", free="6G")
@pytest.mark.allocator_warmup("fits")
@pytest.mark.xfail(strict=True)
def test_expected(checkpoint):
    load(checkpoint, layers=32)
""",
        "--memleak-json=out.json",
        "--junitxml=out.xml",
    )
    result.assert_outcomes(failed=4, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "allocator_warmup FAILED: warm-up asked 23.11 GiB > 16 GiB left under the cap of cuda:0 (predicted)",
            '  limit "fits" = 17,179,869,184 B, from test_it.py:* @allocator_warmup',
            "  cuda:0 at that moment: 139.8 GiB in all, a cap of 16 GiB, * free, 0 B allocated",
            "  the request failed: CUDA out of memory. Tried to allocate 23.11 GiB.*",
            "  caching_allocator_warmup(model, expanded_device_map, hf_quantizer) in the load of*",
            '*@pytest.mark.memleak_fix("warmup_guard")*',
        ]
    )
    result.stdout.fnmatch_lines(
        ["allocator_warmup FAILED: warm-up asked 12.55 GiB > 6 GiB free of cuda:0 (predicted)", "*what to do: *"]
    )
    told = records()
    (died,) = (one for one in told["test_dies_of_it"]["results"] if one["check"] == "allocator_warmup")
    assert (died["verdict"], died["device"], died["measured"]) == ("fail", "cuda:0", 13_476_831_232)
    assert died["limit"]["bytes"] == 6 * 2**30
    assert {one["check"] for one in told["test_dies_of_it"]["results"]} == {"allocator_warmup", "gpu_cap"}
    (negative,) = told["test_less_than_nothing"]["results"]
    assert (negative["verdict"], negative["measured"] < 0) == ("fail", True)
    assert "-204.8 MiB, less than nothing" in result.stdout.str()
    assert "12.55 GiB &gt; 6 GiB" in Path("out.xml").read_text()


QUIET = (
    LOAD
    + """
@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("fits")
def test_it_fits(checkpoint, warmup_spy):
    load(checkpoint)
    assert warmup_spy["cuda:0"].fits and not warmup_spy["cuda:0"].refused

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("ran")
def test_it_runs(checkpoint):
    load(checkpoint)

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("skipped")
def test_it_is_not_skipped(checkpoint):
    load(checkpoint)

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("skipped")
def test_without_a_map_there_is_none(checkpoint, warmup_spy):
    load(checkpoint, device_map=None)
    assert (warmup_spy.loads, warmup_spy.called, warmup_spy.asked) == (1, False, 0)
    assert not warmup_spy["cuda:0"].called

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("ran")
def test_nothing_runs(checkpoint):
    load(checkpoint, device_map={"": "cpu"})

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("skipped")
def test_no_load():
    torch.empty(1000, device="cuda")

@pytest.mark.allocator_warmup("skipped")
def test_on_the_cpu(checkpoint):
    load(checkpoint, device_map={"": "cpu"})

@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint)

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("skipped")
def test_somebody_elses_load(model): ...

@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("fits")
def test_its_own_failure(checkpoint):
    load(checkpoint)
    assert 0
"""
)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_verdict_also_on_workers(workers: str, run_apart: Run, records: Records) -> None:
    """And transformers is imported in the middle of the first test."""
    result = run_apart(QUIET, "-n", workers, "--memleak-json=out.json", "-v")
    result.assert_outcomes(passed=3, failed=3, errors=3)
    seen = {name: [(one["verdict"], one["how"]) for one in told["results"]] for name, told in records().items()}
    assert seen == {
        "test_it_fits": [("pass", "predicted")],
        "test_it_runs": [("pass", "predicted")],
        "test_it_is_not_skipped": [("fail", "predicted")],
        "test_without_a_map_there_is_none": [("pass", "predicted")],
        "test_nothing_runs": [("fail", "predicted")],
        "test_no_load": [("inconclusive", "")],
        "test_on_the_cpu": [("inconclusive", "")],
        "test_somebody_elses_load": [("inconclusive", "")],
        "test_its_own_failure": [("not judged", "")],
    }
    output = result.stdout.str()
    assert "no load of transformers was seen" in output
    assert "1 load of a wider fixture is not its own" in output
    assert "give it a card" in output


_REPORT = ("--memleak-mode=report", "--memleak-json=out.json", "--memleak-html=a.html")


def test_a_report_fails_nothing_and_a_page_shows_it(run_apart: Run, records: Records) -> None:
    pytest.importorskip("plotly")
    result = run_apart(QUIET, "-k", "skipped", *_REPORT)
    result.assert_outcomes(passed=1)
    (told,) = (one for one in records()["test_it_is_not_skipped"]["results"] if one["check"] == "allocator_warmup")
    assert (told["verdict"], told["enforced"]) == ("fail", False)
    assert "and was to be skipped" in Path("a.html").read_text()


def test_a_peak_knows_itself_without_the_warm_up(run_apart: Run, records: Records) -> None:
    result = run_apart(
        """
import pytest, torch
import transformers.modeling_utils as modeling

GIB = 1024**3

def asks_for_more_than_it_needs(model, devices):
    torch.empty(8 * GIB, dtype=torch.uint8, device="cuda")

modeling.caching_allocator_warmup = asks_for_more_than_it_needs

def work():
    torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    modeling.caching_allocator_warmup(None, {"": "cuda:0"})
    torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")

@pytest.mark.gpu_cap("16G")
@pytest.mark.max_peak("4GiB")
def test_counted(memory):
    work()

@pytest.mark.gpu_cap("16G")
@pytest.mark.max_peak("4GiB", warmup=False)
def test_not_counted(memory):
    with memory.measure("work") as block:
        work()
    assert (block.peak, block.peak_without_warmup) == (8 * GIB, 3 * GIB)

@pytest.mark.gpu_cap("16G")
@pytest.mark.max_peak("2.5GiB", warmup=False)
def test_the_rest_is_too_much(memory):
    work()
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=1, failed=2)
    peaks = {name: told["results"][0]["measured"] / 2**30 for name, told in records().items()}
    assert peaks == {"test_counted": 8, "test_not_counted": 3, "test_the_rest_is_too_much": 3}
    result.stdout.fnmatch_lines(["*the peak was that of transformers' allocator warm-up; without the warm-up: 3 GiB"])
    result.stdout.fnmatch_lines(["*allocator warm-up is not counted; with the warm-up: 8 GiB"])
    (explained,) = (one["results"][0]["at_peak"] for name, one in records().items() if name.endswith("much"))
    assert [group["bytes"] for group in explained] == [3 * 2**30]


def test_what_would_be_a_false_green(run_apart: Run) -> None:
    result = run_apart(
        LOAD
        + """
@pytest.mark.gpu_cap("16G")
@pytest.mark.allocator_warmup("skipped")
def test_a_load_that_dies_before_its_warm_up(checkpoint, monkeypatch):
    import transformers.modeling_utils as modeling
    monkeypatch.setattr(modeling, "caching_allocator_warmup", None)
    def dies(*args, **kwargs):
        raise RuntimeError("before the warm-up")
    monkeypatch.setattr(modeling, "expand_device_map", dies)
    with pytest.raises(RuntimeError, match="before the warm-up"):
        load(checkpoint)

@pytest.mark.gpu_cap("4G", told=False)
def test_a_program_that_lifts_its_cap(card):
    torch.cuda.set_per_process_memory_fraction(0.9)
    torch.empty(8 * GIB, dtype=torch.uint8, device=card.device)

@pytest.mark.gpu_cap("16G")
def test_one_device_in_its_spellings(checkpoint, warmup_spy):
    load(checkpoint)
    assert warmup_spy["cuda"] == warmup_spy[0] == warmup_spy["cuda:0"] and warmup_spy[0].asked > 0
    warmup_spy["cuda:7"]

def test_of_the_cpu(warmup_spy):
    warmup_spy["cuda:0"]
"""
    )
    result.assert_outcomes(failed=3, errors=1)
    text = " ".join(result.stdout.str().split())
    assert "allocator_warmup INCONCLUSIVE: a load was begun" in text
    assert "gpu_cap FAILED: 8 GiB > cap 4 GiB (reserved on cuda:0, predicted)" in text
    assert "warmup_spy['cuda:7']: there is cuda:0" in text
    assert "warmup_spy['cuda:0']: the CPU is never warmed up" in text


def test_transformers_is_imported_for_the_first_time_in_blocks_inside_each_other(run_apart: Run) -> None:
    result = run_apart(
        """
        import pytest

        @pytest.mark.max_peak("1GiB")
        def test_late(memory):
            with memory.measure("outer"), memory.measure("inner"):
                import transformers.modeling_utils as modeling
                mine = modeling.caching_allocator_warmup = lambda *arguments: None
            assert modeling.caching_allocator_warmup is mine
        """
    )
    result.assert_outcomes(passed=1)
