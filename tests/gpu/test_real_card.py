"""What only a real GPU can show: caps that its allocator enforces, and what the program is told meanwhile."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Records, Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_cap_is_exact_told_and_undone(run_on_gpu: Run) -> None:
    before = torch.cuda.mem_get_info()[1], torch.cuda.get_device_properties(0).total_memory
    result = run_on_gpu(
        """
        import pytest, torch

        GIB, MIB = 1024**3, 1024**2

        @pytest.mark.gpu_cap("1G")
        def test_enforced_to_the_last_segment():
            held = [torch.empty(64 * MIB, dtype=torch.uint8, device="cuda") for _ in range(16)]
            assert torch.cuda.memory_reserved() == GIB
            with pytest.raises(torch.OutOfMemoryError, match="1024.00 MiB allowed"):
                torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("1G")
        def test_told():
            from torch.cuda import mem_get_info
            free, total = mem_get_info()
            assert (free, total) == (GIB, GIB)
            held = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
            assert torch.cuda.mem_get_info()[0] == GIB - 256 * MIB
            assert torch.cuda.get_device_properties(0).total_memory == GIB
            assert torch.cuda.get_device_properties(0).name == torch.cuda.get_device_name(0)
            if hasattr(torch.accelerator, "get_memory_info"):
                assert torch.accelerator.get_memory_info()[1] == GIB

        @pytest.mark.gpu_cap("1G")
        def test_fractions_are_of_the_card_that_is_told():
            assert torch.cuda.get_per_process_memory_fraction() == 1.0
            for fraction, fits, too_much in ((0.5, 500, 514), (1.0, 900, 1026)):
                torch.cuda.set_per_process_memory_fraction(fraction)
                assert torch.cuda.get_per_process_memory_fraction() == fraction
                torch.empty(fits * MIB, dtype=torch.uint8, device="cuda")
                torch.cuda.empty_cache()
                with pytest.raises(torch.OutOfMemoryError):
                    torch.empty(too_much * MIB, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("1G", told=False)
        def test_not_told():
            assert torch.cuda.mem_get_info()[1] > 2 * GIB
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("2G", free="1G")
        def test_the_rest_is_occupied():
            assert torch.cuda.mem_get_info() == (GIB, 2 * GIB)
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(GIB + 2 * MIB, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("1G")
        def test_dies():
            torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")

        @pytest.mark.gpu_cap("900T")
        def test_cap_larger_than_the_card(): ...

        @pytest.fixture(scope="module")
        def held():
            return torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")

        def test_hold(held): ...

        @pytest.mark.gpu_cap("1G")
        def test_wider_fixture_fills_the_card(held): ...

        def test_no_cap_is_left():
            assert torch.cuda.mem_get_info()[1] > 2 * GIB
            torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
        """
    )
    result.assert_outcomes(passed=7, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*does not fit cuda:0, which has*"])
    result.stdout.fnmatch_lines(["*of cuda:0 are held before the test begins*"])
    result.stdout.fnmatch_lines(["*gpu_cap FAILED: out of memory under the cap of 1 GiB*"])
    assert (torch.cuda.mem_get_info()[1], torch.cuda.get_device_properties(0).total_memory) == before
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        assert torch.cuda.get_per_process_memory_fraction(0) == 1.0


def test_flag_caps_every_test(run_on_gpu: Run) -> None:
    result = run_on_gpu(
        """
        import torch

        def test_unmarked():
            assert torch.cuda.mem_get_info()[1] == 2 * 1024**3

        def test_card(card):
            assert card.cap == card.total == 2 * 1024**3
            assert card.device == "cuda:0"
            assert card.backend == "real"
        """,
        "--gpu-cap=2G",
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*capped at 2 GiB (enforced on*"])


def test_kinds_of_memory(run_on_gpu: Run, records: Records) -> None:
    result = run_on_gpu(
        """
        import time
        import pytest, torch

        @pytest.fixture(scope="module", autouse=True)
        def context():
            torch.ones(1, device="cuda")
            torch.cuda.empty_cache()

        @pytest.mark.parametrize("kind", [
            pytest.param(kind, marks=pytest.mark.max_peak("80G", of=kind))
            for kind in ("requested", "allocated", "reserved", "driver")
        ])
        def test_it(kind):
            held = torch.empty(1000, dtype=torch.uint8, device="cuda")
            if kind == "driver":  # which is sampled: let a sample be taken
                time.sleep(0.1)
            del held
            torch.cuda.empty_cache()
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=4)
    grown = {}
    for name, record in records().items():
        peak = record["results"][0]
        grown[name] = peak["measured"] - peak["base"]
    assert grown["test_it[requested]"] == 1000
    assert grown["test_it[allocated]"] == 1024
    assert grown["test_it[reserved]"] == 2 * 1024**2
    assert grown["test_it[driver]"] >= 2 * 1024**2


def test_first_call_workspaces_are_not_a_leak(run_on_gpu: Run) -> None:
    result = run_on_gpu(
        """
        import random
        import pytest, torch

        def matmul(): torch.randn(256, 256, device="cuda") @ torch.randn(256, 256, device="cuda")
        def convolution():
            torch.nn.functional.conv2d(torch.randn(1, 8, 32, 32, device="cuda"), torch.randn(8, 8, 3, 3, device="cuda"))
        def attention():
            q = torch.randn(1, 4, 64, 32, device="cuda", dtype=torch.bfloat16)
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        def linear_half():
            half = {"device": "cuda", "dtype": torch.bfloat16}
            torch.nn.Linear(64, 64, **half)(torch.randn(8, 64, **half))
        def spectrum(): torch.fft.fft(torch.randn(1024, device="cuda"))
        def decomposition(): torch.linalg.svd(torch.randn(64, 64, device="cuda"))
        def random_numbers(): torch.nn.functional.dropout(torch.ones(1000, device="cuda"))

        WORK = [matmul, convolution, attention, linear_half, spectrum, decomposition, random_numbers] * 15
        random.Random(5).shuffle(WORK)

        @pytest.mark.max_leak
        @pytest.mark.parametrize("work", WORK)
        def test_it(work):
            work()
        """
    )
    result.assert_outcomes(passed=105)


def test_first_call_workspaces_are_not_the_base_of_the_next_test(run_on_gpu: Run, records: Records) -> None:
    result = run_on_gpu(
        """
        import pytest, torch

        @pytest.mark.max_peak("1GiB")
        def test_first():
            torch.randn(256, 256, device="cuda") @ torch.randn(256, 256, device="cuda")

        @pytest.mark.max_peak("4MiB")
        def test_next():
            torch.ones(1024**2, dtype=torch.uint8, device="cuda")
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2)
    (first,), (following,) = (records()[name]["results"] for name in ("test_first", "test_next"))
    # The workspace of a test's own products is in its peak.
    assert first["measured"] > 4 * 1024**2
    assert following["base"] < 1024**2


def test_cpu_tensors_leak_beside_a_real_card(run_on_gpu: Run) -> None:
    result = run_on_gpu(
        """
        import pytest, torch
        KEPT = []

        @pytest.mark.max_leak
        def test_it():
            KEPT.append(torch.ones(1024, device="cpu"))
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*still held after the test 4 KiB > limit 0 B (allocated on cpu*"])


def test_serial_and_two_workers_say_the_same(pytester: pytest.Pytester, records: Records) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest, torch
        KEPT = []

        @pytest.mark.max_peak("4MiB")
        @pytest.mark.parametrize("size", [1, 2, 8, 9])
        def test_peak(size):
            torch.ones(size * 1024**2, dtype=torch.uint8, device="cuda")

        @pytest.mark.max_leak
        @pytest.mark.parametrize("size", [0, 1])
        def test_leak(size):
            KEPT.append(torch.ones(size * 1024**2, dtype=torch.uint8, device="cuda"))
        """
    )
    seen = []
    for workers in ("0", "2"):
        result = pytester.runpytest_subprocess(
            "-n", workers, "--gpu-backend=real", "--gpu-cap=4G", "--memleak-json=out.json"
        )
        result.assert_outcomes(passed=3, failed=3)
        seen.append(
            {
                name: [(r["check"], r["verdict"], r["measured"] - (r["base"] or 0)) for r in record["results"]]
                for name, record in records().items()
            }
        )
    assert seen[0] == seen[1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_each_of_several_devices_must_hold(run_on_gpu: Run, records: Records) -> None:
    result = run_on_gpu(
        """
        import pytest, torch

        def fill(device, size):
            torch.empty(size * 1024**2, dtype=torch.uint8, device=device)

        @pytest.mark.max_peak("8MiB")
        def test_second_device_breaks_it():
            fill("cuda:0", 4)
            fill("cuda:1", 16)

        @pytest.mark.max_peak("8MiB", device="cuda:0")
        def test_only_the_first_is_meant():
            fill("cuda:1", 16)

        @pytest.mark.max_peak("8MiB", device=1)
        def test_only_the_second_is_meant():
            fill("cuda:1", 16)

        @pytest.mark.gpu_cap("64MiB")
        def test_both_are_capped():
            for device in ("cuda:0", "cuda:1"):
                assert torch.cuda.mem_get_info(device)[1] == 64 * 1024**2
                with pytest.raises(torch.OutOfMemoryError):
                    fill(device, 128)

        KEPT = []

        @pytest.mark.max_leak
        def test_leaks_on_the_second():
            KEPT.append(torch.empty(1024**2, dtype=torch.uint8, device="cuda:1"))

        @pytest.mark.max_peak("8MiB", device="cuda:9")
        def test_no_such_device(): ...
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=3, errors=1)
    by_device = {one["device"]: one["verdict"] for one in records()["test_second_device_breaks_it"]["results"]}
    assert by_device == {"cuda:0": "pass", "cuda:1": "fail"}
    result.stdout.fnmatch_lines(["*still held after the test 1 MiB > limit 0 B (allocated on cuda:1, measured)*"])


def test_simulated_card_beside_it(pytester: pytest.Pytester) -> None:
    """Refused with what to do; and a torch that it would not fit takes nothing from a real card."""
    pytester.makepyfile(
        changed_torch="import sys\nsys.modules['pytest_memleak.cards.simulated.torch_inside'] = None\n",
        test_it="""
        import pytest, torch

        @pytest.mark.gpu_cap("1G")
        @pytest.mark.max_peak("1MiB")
        def test_it(card):
            torch.empty(1000, device=card.device)
        """,
    )
    pytester.syspathinsert()
    arguments = ("-p", "no:cacheprovider")
    result = pytester.runpytest_subprocess(*arguments, "--gpu-backend=simulated")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--gpu-backend on the command line: this machine has an accelerator (cuda)*or hide the card*"]
    )
    pytester.runpytest_subprocess(*arguments, "-p", "changed_torch").assert_outcomes(passed=1)
