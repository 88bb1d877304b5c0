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


def test_leak_in_a_test_with_subtests(run_both_ways: Run) -> None:
    result = run_both_ways(
        """
        import unittest
        import pytest, torch
        KEPT = []

        @pytest.mark.max_leak
        class Case(unittest.TestCase):
            def test_subtests(self):
                for number in range(3):
                    with self.subTest(number=number):
                        KEPT.append(torch.ones(1024))
        """
    )
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*max_leak FAILED: still held after the test 12 KiB*"])


def test_release_of_a_wider_fixtures_old_value_does_not_hide_a_leak(run: Run) -> None:
    result = run(
        """
        import pytest, torch
        KEPT = []

        @pytest.fixture(scope="module", params=["a", "b", "c"])
        def model(request):
            yield torch.ones(4 * 1024**2)

        @pytest.mark.max_leak
        def test_leaks(model):
            KEPT.append(torch.ones(1024**2))
        """
    )
    result.assert_outcomes(failed=3)


def test_cap_of_its_own_and_a_child_that_it_does_not_bind(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import subprocess, sys
        import pytest

        @pytest.mark.gpu_cap("16MiB")
        def test_it():
            subprocess.run([sys.executable, "-c", "import torch; torch.ones(8 * 1024**2)"], check=True)
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*gpu_cap INCONCLUSIVE: *imported torch*"])


def test_marker_that_is_added_while_the_test_runs(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch

        @pytest.fixture
        def limited(request):
            request.node.add_marker(pytest.mark.max_peak("1KiB"))

        def test_unmeasured(limited):
            torch.ones(1024**2)

        @pytest.mark.max_leak
        def test_measured_for_something_else(limited): ...
        """
    )
    assert result.parseoutcomes()["errors"] == 2
    result.stdout.fnmatch_lines(["*changed after the tests were collected*pytest_collection_modifyitems*"])


def test_out_of_memory_in_a_fixture(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        def too_much():
            return torch.ones(64 * 1024**2, dtype=torch.uint8)

        @pytest.fixture
        def needs_more():
            return too_much()

        @pytest.fixture
        def swallows_at_the_end():
            yield
            try:
                too_much()
            except RuntimeError:
                pass

        @pytest.fixture(scope="module")
        def wider_swallows():
            try:
                too_much()
            except RuntimeError:
                pass

        @pytest.mark.gpu_cap("16MiB")
        def test_dies_in_setup(needs_more): ...

        @pytest.mark.gpu_cap("16MiB")
        def test_swallows_in_teardown(swallows_at_the_end): ...

        @pytest.mark.gpu_cap("16MiB")
        def test_is_not_to_blame(wider_swallows): ...
        """
    )
    outcomes = result.parseoutcomes()
    assert outcomes["errors"] == 2
    result.stdout.fnmatch_lines(["*gpu_cap FAILED: out of memory under the cap of 16 MiB*"])
    result.stdout.fnmatch_lines(["*gpu_cap INCONCLUSIVE: 1 allocation was refused*"])


def test_limit_of_a_block_that_never_ends(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        def test_never_entered(memory):
            memory.measure("load").limit("1KiB")

        def test_never_left(memory):
            load = memory.measure("load")
            load.__enter__()
            load.limit("1KiB")
        """
    )
    assert result.parseoutcomes()["errors"] == 2
    result.stdout.fnmatch_lines(["*limit(\"1KiB\") of the block 'load': the block never ended*"])


def test_memory_that_torch_did_not_allocate_and_that_is_gone_again(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import numpy, pytest, torch

        @pytest.mark.max_peak("4MiB")
        def test_it():
            born = torch.from_numpy(numpy.ones(8 * 1024**2, dtype=numpy.uint8))
            del born
        """
    )
    result.assert_outcomes(errors=1)


def test_a_traceback_in_a_log_record_that_the_program_keeps(run: Run) -> None:
    """pytest has the same record, and lets go of what it holds."""
    result = run(
        """
        import logging, pytest, torch
        RECORDS = []

        class Keeping(logging.Handler):
            def emit(self, record):
                RECORDS.append(record)

        logging.getLogger("program").addHandler(Keeping())

        @pytest.mark.max_leak
        def test_it():
            held = torch.ones(1024)
            try:
                raise ValueError
            except ValueError:
                logging.getLogger("program").exception("failed")
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*local 'held' of frame test_it (test_it.py:*", "*in exc_info of the log record test_it.RECORDS*"]
    )
