"""Where the simulated card has no answer: an error that says so, and no verdict; and who is not concerned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Records, Run

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a card of its own")

UNCACHED = """
import pytest, torch

@pytest.mark.max_peak("1GiB")
@pytest.mark.gpu_cap("4GiB")
def test_sets_it(monkeypatch):
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    torch.ones(3, device="cuda")
"""


def test_what_the_card_cannot_know_is_an_error_and_no_verdict(run_apart: Run, records: Records) -> None:
    result = run_apart(
        """
        import unittest
        import pytest, torch

        def unknown():
            return torch.randn(2048, 2048, device="cuda").sum()

        def test_passes_by_it():
            if unknown() > 0:
                pass

        def test_fails_by_it():
            assert unknown() > 0 and unknown() < 0

        @pytest.mark.max_peak("1MiB")
        def test_peak_may_be_another():
            if unknown() > 0:
                pass

        @pytest.mark.xfail(strict=True)
        def test_expects_to_fail():
            assert bool(unknown() > 0) is None

        class TestOfUnittest(unittest.TestCase):
            def test_fails_by_it(self):
                self.assertTrue(unknown() > 0 and unknown() < 0)

        def test_only_reads_it():
            print(unknown().item())

        def test_knows():
            assert torch.ones(4, device="cuda").sum() == 4
            with pytest.raises(ZeroDivisionError):
                1 / 0

        def test_fails_by_itself():
            assert torch.ones(4, device="cuda").sum() == 5
        """,
        "--gpu-backend=simulated",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=1, errors=5)
    told = records()
    for name in ("test_passes_by_it", "test_peak_may_be_another", "test_expects_to_fail"):
        assert told[name]["verdict"] == "inconclusive", name
    (undecided,) = told["test_passes_by_it"]["results"]
    assert undecided["check"] == "simulation"
    assert "test_it.py:8" in undecided["message"]
    assert told["test_peak_may_be_another"]["results"][0]["check"] == "max_peak"
    (note,) = told["test_only_reads_it"]["notes"]
    assert note.startswith("1 value that was read and that nobody knows: placeholders (1.0 each), at test_it.py:")


def test_report_mode_fails_nothing_of_it(run_apart: Run) -> None:
    result = run_apart(
        """
        import torch

        def test_it():
            if torch.randn(2048, 2048, device="cuda").sum() > 0:
                pass
        """,
        "--gpu-backend=simulated",
        "--memleak-mode=report",
    )
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 test read in report mode*", "*cuda:0: allocated, predicted*"])


@pytest.mark.parametrize("workers", ["0", "1"])
def test_no_compiler(
    run_apart: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Records, workers: str
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    text = """
        import pytest, torch

        @pytest.mark.gpu_cap("1G")
        def test_it(card):
            assert card.backend == "cpu" and not torch.cuda.is_available()
        """
    result = run_apart(text, "--gpu-backend=simulated", "-n", workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--gpu-backend on the command line: the C++ compiler /bin/false failed on the simul*"]
    )
    result = run_apart(text, "--memleak-json=out.json", "-n", workers)
    result.assert_outcomes(passed=1)
    if workers == "0":
        result.stdout.fnmatch_lines(["memleak: no simulated card, the CPU stands in with real values: the C++ compi*"])
    result.stdout.fnmatch_lines(["card: the CPU stands in for a 1 GiB card (no simulated card: the C++ compiler*"])
    (record,) = records().values()
    assert record["card"]["instead"].startswith("the C++ compiler /bin/false failed on the simulated card")


def test_backward_pass_before_there_was_a_card(run_apart: Run, records: Records) -> None:
    text = """
        import pytest, torch
        {}

        @pytest.mark.gpu_cap("1G")
        @pytest.mark.max_peak("1KiB")
        def test_it(card):
            assert card.backend == "simulated"
            weight = torch.ones(300, 300, device=card.device, requires_grad=True)
            (weight @ weight).sum().backward()
        """
    measured = []
    for before in ("torch.ones(1, requires_grad=True).sum().backward()", ""):
        run_apart(text.format(before), "--memleak-json=out.json").assert_outcomes(failed=1)
        measured.append([result["measured"] for result in records()["test_it"]["results"]])
    assert measured[0] == measured[1]
    assert measured[0][0] > 64 * 1024**2, "a workspace for this thread, and one for that of backward passes"


def test_a_prediction_beside_the_tests_card(run_apart: Run, records: Records) -> None:
    run_apart(
        """
        import pytest, torch
        import pytest_memleak

        def program(card):
            torch.empty(600 * 1024**2, dtype=torch.uint8, device=card.device)
            assert torch.cuda.get_device_properties(0).total_memory == card.total
            return torch.cuda.mem_get_info()[1]

        @pytest.mark.gpu_cap("100MiB")
        @pytest.mark.max_peak("1MiB")
        @pytest.mark.max_leak
        def test_it(card):
            torch.empty(2 * 1024**2, dtype=torch.uint8, device=card.device)
            assert pytest_memleak.predict(program, card="2G").allocated_peak == 600 * 1024**2
            assert not pytest_memleak.predict(program, card="500MiB").fits
            assert torch.cuda.mem_get_info()[1] == torch.cuda.get_device_properties(0).total_memory == 100 * 1024**2
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(200 * 1024**2, dtype=torch.uint8, device=card.device)
        """,
        "--memleak-json=out.json",
    ).assert_outcomes(failed=1)
    peak, leak, *others = records()["test_it"]["results"]
    assert (peak["check"], peak["verdict"], peak["measured"]) == ("max_peak", "fail", 2 * 1024**2)
    assert {other["verdict"] for other in (leak, *others)} == {"pass"}


def test_skips_are_not_counted_for_those_who_asked_for_nothing(run_apart: Run) -> None:
    text = "import pytest\n@pytest.mark.skip('needs a GPU')\ndef test_it(): ...\n"
    assert "for want of a GPU" not in run_apart(text).stdout.str()
    assert "1 skip for want of a GPU" in run_apart(text, "--gpu-cap=1G").stdout.str()
    assert "for want of a GPU" not in run_apart(text, "--gpu-backend=cpu", "--gpu-cap=1G").stdout.str()


def test_what_is_left_on_a_card_that_is_gone_is_explained(run_apart: Run) -> None:
    result = run_apart(
        """
        import pytest, torch

        kept = []

        @pytest.mark.gpu_cap("1G")
        def test_leaves_it():
            kept.append(torch.ones(4, device="cuda"))

        def test_finds_it():
            kept[0] + 1

        def test_fails_by_itself():
            assert torch.ones(1).item() == 2
        """
    )
    result.assert_outcomes(passed=1, failed=2)
    said = "no card is simulated for this test: --gpu-backend=auto has one for tests with a cap and no others,"
    assert result.stdout.str().count(said) == 1
    result.stdout.fnmatch_lines(["*what to do: give this test a cap (@pytest.mark.gpu_cap, --gpu-cap), or*"])


def test_without_the_caching_allocator_nothing_is_predicted(
    run_apart: Run, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "PYTORCH_NO_CUDA_MEMORY_CACHING is set, which switches off the allocator that counts: unset it"
    run_apart(UNCACHED, "--memleak-json=out.json")
    assert words in records()["test_sets_it"]["results"][0]["message"]
    assert records()["test_sets_it"]["verdict"] == "inconclusive"
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    for option in ("--gpu-backend=auto", "--gpu-backend=simulated"):
        result = run_apart(UNCACHED, option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: *{words}"])
