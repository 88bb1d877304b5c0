"""Tests on a card that is not there: who gets it, when, and what is said of its numbers. Each run in its own process,
since a simulated card is one for the whole process."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.conftest import Records, Run

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")

PROMISES = """
import pytest, torch

MIB = 1024**2
KEPT = []

def fill(size, device="cuda"):
    return torch.empty(size * MIB, dtype=torch.uint8, device=device)

@pytest.mark.max_peak("30MiB")
def test_peak_holds():
    fill(20)

@pytest.mark.max_peak("10MiB")
def test_peak_breaks():
    fill(20)

@pytest.mark.max_peak("10MiB")
def test_reset_is_not_believed():
    fill(20)
    torch.cuda.reset_peak_memory_stats()
    if hasattr(torch.accelerator, "reset_peak_memory_stats"):  # since torch 2.9
        torch.accelerator.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated()

@pytest.mark.max_peak("10MiB", of="reserved")
def test_reserved_is_more_than_was_asked_for():
    torch.cuda.empty_cache()
    fill(3)

@pytest.mark.max_leak
def test_nothing_leaks():
    layer = torch.nn.Linear(300, 300).to("cuda")
    layer(torch.ones(2, 300, device="cuda")).sum().backward()

@pytest.mark.max_leak
def test_leaks_on_the_card():
    KEPT.append(fill(1))

@pytest.mark.max_leak
def test_leaks_beside_the_card():
    KEPT.append(fill(2, "cpu"))

@pytest.mark.max_host_peak("5MiB")
def test_host_peak_holds():
    fill(4, "cpu"), fill(64)

@pytest.mark.max_host_peak("3MiB")
def test_host_peak_breaks():
    fill(4, "cpu")

@pytest.mark.gpu_cap("1G")
def test_cap_refuses():
    fill(2048)

@pytest.mark.gpu_cap("1G")
def test_cap_is_told_and_binds(card):
    assert (card.device, card.backend, card.total, card.cap) == ("cuda:0", "simulated", 1024**3, 1024**3)
    assert torch.cuda.mem_get_info()[1] == torch.cuda.get_device_properties(0).total_memory == 1024**3
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a "):
        fill(2048)
    fill(900)

@pytest.mark.gpu_cap("1G", free="64MiB", told=False)
def test_occupied_by_somebody_else():
    assert torch.cuda.mem_get_info()[1] > 10 * 1024**3
    with pytest.raises(torch.OutOfMemoryError):
        fill(128)

@pytest.mark.gpu_cap("1G")
def test_fractions_are_of_the_card_that_is_told():
    assert torch.cuda.get_per_process_memory_fraction() == 1.0
    torch.cuda.set_per_process_memory_fraction(0.5)
    assert torch.cuda.get_per_process_memory_fraction() == 0.5
    fill(500)
    with pytest.raises(torch.OutOfMemoryError):
        fill(514)
    torch.cuda.set_per_process_memory_fraction(1.0)
    fill(900)
    with pytest.raises(torch.OutOfMemoryError):
        fill(1026)

def test_cap_is_gone():
    fill(4096)
    with pytest.raises(torch.OutOfMemoryError) as refusal:
        fill(512 * 1024)
    assert " allowed; " not in str(refusal.value)  # so torch speaks of a cap
"""

PASS = {
    "test_peak_holds",
    "test_nothing_leaks",
    "test_host_peak_holds",
    "test_cap_is_told_and_binds",
    "test_fractions_are_of_the_card_that_is_told",
    "test_occupied_by_somebody_else",
    "test_cap_is_gone",
}


def test_every_promise_green_and_red_alike_serially_and_on_workers(
    run_apart: Run, records: Records, pytester: pytest.Pytester
) -> None:
    seen = []
    for workers in ("0", "2"):
        result = run_apart(
            PROMISES, "-n", workers, "--gpu-backend=simulated:h100", "--memleak-json=out.json", "--junitxml=out.xml"
        )
        result.assert_outcomes(passed=len(PASS), failed=7)
        told = records()
        assert {name for name, record in told.items() if record["verdict"] in (None, "pass")} == PASS
        assert {record["card"]["backend"] for record in told.values()} == {"simulated"}
        seen.append(
            {
                name: [
                    (r["check"], r["verdict"], r["device"], r["how"], r["measured"] - (r["base"] or 0)) for r in found
                ]
                for name, record in told.items()
                if (
                    found := [
                        result
                        for result in record["results"]
                        if result["device"].startswith("c") and result["kind"] == "allocated"
                    ]
                )
            }
        )
    assert seen[0] == seen[1]
    mib = 1024**2
    assert seen[0]["test_peak_breaks"] == [("max_peak", "fail", "cuda:0", "predicted", 20 * mib)]
    assert seen[0]["test_reset_is_not_believed"] == seen[0]["test_peak_breaks"]
    assert told["test_reserved_is_more_than_was_asked_for"]["results"][0]["measured"] >= 20 * mib
    assert seen[0]["test_leaks_on_the_card"] == [("max_leak", "fail", "cuda:0", "predicted", mib)]
    assert seen[0]["test_leaks_beside_the_card"][0][:3] == ("max_leak", "fail", "cpu")
    (host,) = told["test_host_peak_breaks"]["results"]
    assert (host["device"], host["how"], host["measured"]) == ("host", "predicted", 4 * mib)
    output = result.stdout.str()
    assert "module global test_it.KEPT[" in output
    assert "simulated card: NVIDIA H100 80GB HBM3, 79.20 GiB; all its numbers are predicted" in output
    assert "out of memory under the cap of 1 GiB" in output
    assert told["test_cap_refuses"]["results"][0]["how"] == "predicted"
    properties = {element.get("value") for element in ElementTree.parse(pytester.path / "out.xml").iter("property")}
    assert any("simulated NVIDIA H100" in value and "predicted" in value for value in properties if value)


def test_from_before_the_first_conftest_until_the_run_ends(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import torch\nassert torch.cuda.is_available()")
    pytester.makepyfile(
        test_it="""
        import pytest, torch
        CARD = "cuda" if torch.cuda.is_available() else "cpu"

        @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
        def test_it():
            assert torch.ones(2, device=CARD).is_cuda
            assert torch.cuda.device_count() == 2
            assert torch.cuda.get_device_name(1) == "NVIDIA GeForce RTX 3090"
        """
    )
    pytester.makepyfile(
        runner="""
        import sys, pytest, torch
        for _ in range(2):
            status = pytest.main(["-q", "-p", "no:cacheprovider", "--gpu-backend=simulated:2xrtx3090", "test_it.py"])
            assert status == 0 and not torch.cuda.is_available()
            del sys.modules["test_it"], sys.modules["conftest"]
        """
    )
    result = pytester.run(sys.executable, "runner.py")
    assert result.ret == 0, result.stdout.str()
    assert result.stdout.str().count("1 passed") == 2


def test_without_a_gpu_a_cap_brings_the_card_and_nothing_else_does(run_apart: Run, records: Records) -> None:
    result = run_apart(
        """
        import pytest, torch

        assert not torch.cuda.is_available()

        @pytest.fixture(scope="session")
        def weights(card):
            return torch.ones(1024, device=card.device)

        def test_backward_on_the_cpu_comes_first():
            assert not torch.cuda.is_available()
            torch.ones(1, requires_grad=True).sum().backward()

        @pytest.mark.gpu_cap("1G")
        @pytest.mark.max_peak("1MiB")
        def test_cap(weights):
            assert torch.cuda.is_available() and weights.device == torch.device("cuda", 0)
            (weights.clone().requires_grad_() * 2).sum().backward()

        @pytest.mark.max_peak("20MiB")
        def test_no_cap(card):
            assert card.backend == "cpu" and not torch.cuda.is_available()
            assert (torch.full((2000, 50), 2.0) @ torch.ones(50, 2000)).sum() == 4e8

        @pytest.mark.gpu_cap("1G")
        @pytest.mark.skipif("not torch.cuda.is_available()", reason="asks when the test begins")
        def test_asks_late(): ...

        @pytest.mark.gpu_cap("1G")
        @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
        def test_asks_early(): ...

        @pytest.mark.gpu_cap("300G")
        def test_cap_that_is_more_than_any_card_has(card):
            torch.empty(250 * 1024**3, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("801G")
        def test_cap_that_is_more_than_can_be_simulated(): ...

        @pytest.mark.gpu_cap("1G")
        def test_and_less_again():
            assert torch.cuda.memory_reserved() < 1024**3

        def test_after():
            assert not torch.cuda.is_available()
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=7, skipped=1, errors=1)
    result.stdout.fnmatch_lines(["*@gpu_cap: a simulated card has 800 GiB at most*"])
    backends = {name: record["card"]["backend"] for name, record in records().items() if record["card"]}
    assert (backends["test_cap"], backends["test_no_cap"]) == ("simulated", "cpu")
    assert "test_after" not in backends
    result.stdout.fnmatch_lines(["1 skip for want of a GPU: --gpu-backend=simulated lets such tests see a card*"])


def test_with_the_runs_cap_each_test_has_the_card(run_apart: Run) -> None:
    result = run_apart(
        """
        import torch

        def test_in_its_body():
            assert torch.cuda.get_device_properties(0).total_memory == 2 * 1024**3
            torch.empty(3 * 1024**3, dtype=torch.uint8, device="cuda")
        """,
        "--gpu-cap=2G",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["memleak: cap 2 GiB *the card is simulated, and its numbers are predicted", "*OutOfMemoryError: CUDA out of*"]
    )
    result.stdout.fnmatch_lines(["card: simulated NVIDIA H200 (cuda:0), *capped at 2 GiB*"])


def test_named_card_is_not_larger_than_it_is(run_apart: Run) -> None:
    text = "import pytest\n@pytest.mark.gpu_cap('300G')\ndef test_it(): ...\n"
    result = run_apart(text, "--gpu-backend=simulated:h100")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*@gpu_cap: a cap of 300 GiB does not fit cuda:0, which has 79.20 GiB*"])
    result = run_apart(text, "--gpu-backend=simulated:h100", "--gpu-cap=100G")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--gpu-cap on the command line: '100G' is more than NVIDIA H100*"])


def test_blocks_measure_it_with_and_without_the_fixture(run_apart: Run, records: Records) -> None:
    run_apart(
        """
        import pytest, torch
        import pytest_memleak

        @pytest.mark.gpu_cap("1G")
        def test_it(memory):
            with memory.measure("outer") as outer:
                with pytest_memleak.measure("inner") as inner:
                    held = torch.empty(1024**2, device="cuda")
                del held
                torch.cuda.reset_peak_memory_stats()
            assert inner.peak == inner.grown == outer.peak == 4 * 1024**2
            assert outer.grown == 0
            outer.limit("4MiB")
            with pytest.raises(AssertionError, match="4 MiB > limit 1 MiB .allocated on cuda:0, predicted"):
                inner.limit("1MiB")
        """,
        "--memleak-json=out.json",
    ).assert_outcomes(passed=1)
    (block,) = records()["test_it"]["blocks"]
    assert (block["device"], block["how"]) == ("cuda:0", "predicted")
