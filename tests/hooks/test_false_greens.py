"""Tests that would pass if the plugin believed them."""

from __future__ import annotations

from tests.conftest import Run


def test_program_that_resets_the_peak_is_not_believed(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("4MiB")
        def test_it():
            torch.ones(8 * 1024**2, dtype=torch.uint8)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
                torch.accelerator.reset_peak_memory_stats()
        """
    )
    result.assert_outcomes(failed=1)


def test_allocation_in_a_thread_is_seen(run: Run) -> None:
    result = run(
        """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        import pytest, torch

        def allocate(device):
            return torch.ones(8 * 1024**2, dtype=torch.uint8, device=device).numel()

        @pytest.mark.max_peak("4MiB")
        def test_thread():
            thread = threading.Thread(target=allocate, args=[torch.get_default_device()])
            thread.start(); thread.join()

        @pytest.mark.max_peak("4MiB")
        def test_pool():
            with ThreadPoolExecutor(2) as pool:
                pool.submit(allocate, torch.get_default_device()).result()
        """
    )
    result.assert_outcomes(failed=2)


def test_child_that_imports_torch_is_inconclusive(run_both_ways: Run) -> None:
    result = run_both_ways(
        """
        import subprocess, sys
        import pytest, torch

        @pytest.mark.max_peak("4MiB")
        def test_child_with_torch():
            subprocess.run([sys.executable, "-c", "import torch"], check=True)

        @pytest.mark.max_leak
        def test_leak_with_child():
            subprocess.run([sys.executable, "-c", "import torch"], check=True)

        @pytest.mark.max_peak("4MiB")
        def test_child_without():
            subprocess.run([sys.executable, "-c", "pass"], check=True)
        """
    )
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*max_peak INCONCLUSIVE: *imported torch*"])


def test_swallowed_out_of_memory_is_inconclusive_and_an_expected_one_is_not(run: Run) -> None:
    result = run(
        """
        import unittest
        import pytest, torch

        def too_much():
            return torch.ones(64 * 1024**2, dtype=torch.uint8)

        @pytest.mark.gpu_cap("16MiB")
        def test_swallows():
            try:
                too_much()
            except RuntimeError:
                pass

        @pytest.mark.max_peak("16MiB")
        @pytest.mark.gpu_cap("16MiB")
        def test_swallows_with_a_budget():
            try:
                too_much()
            except torch.OutOfMemoryError:
                pass

        @pytest.mark.gpu_cap("16MiB")
        def test_expects():
            with pytest.raises(torch.OutOfMemoryError):
                too_much()

        @pytest.mark.gpu_cap("16MiB")
        def test_expects_one_and_swallows_one():
            try:
                too_much()
            except torch.OutOfMemoryError:
                pass
            with pytest.raises(torch.OutOfMemoryError):
                too_much()

        @pytest.mark.gpu_cap("16MiB")
        class Case(unittest.TestCase):
            def test_expects_too(self):
                with self.assertRaises(torch.OutOfMemoryError):
                    too_much()

        @pytest.mark.gpu_cap("16MiB")
        def test_dies_of_it():
            too_much()

        def test_cap_is_gone():
            too_much()
        """
    )
    result.assert_outcomes(passed=3, failed=1, errors=3)
    result.stdout.fnmatch_lines(["*gpu_cap INCONCLUSIVE: 1 allocation was refused*"])
    result.stdout.fnmatch_lines(["*gpu_cap FAILED: out of memory under the cap of 16 MiB*"])


def test_model_dropped_before_the_end_is_in_the_peak(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("1MiB")
        def test_it():
            model = torch.nn.Linear(1024, 1024)
            del model
        """
    )
    result.assert_outcomes(failed=1)


def test_memory_that_torch_did_not_allocate_is_not_overlooked(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import numpy, pytest, torch

        @pytest.fixture(scope="module", autouse=True)
        def nothing_left_for_other_tests():
            yield
            KEPT.clear()

        @pytest.fixture
        def born_in_numpy():
            return torch.from_numpy(numpy.ones(8 * 1024**2, dtype=numpy.uint8))

        @pytest.mark.max_peak("4MiB")
        def test_cannot_be_judged(born_in_numpy): ...

        @pytest.mark.max_peak("16MiB")
        def test_passes_either_way(born_in_numpy): ...

        KEPT = []

        @pytest.mark.max_leak
        def test_leaks(born_in_numpy):
            KEPT.append(born_in_numpy)

        @pytest.mark.max_leak
        def test_the_next_one_does_not(): ...
        """
    )
    result.assert_outcomes(passed=2, errors=1, failed=1)


def test_inconclusive_is_an_error_also_for_xfail(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.mark.xfail
        @pytest.mark.max_peak("fp16_size")
        def test_no_model(): ...
        """
    )
    assert result.parseoutcomes()["errors"] == 1
