"""Other things that live in a test run: capture, logging, tmp_path, interrupts, other conftests, inheritance."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Run, run_in_process


def test_repeated_runs_live_inside_capture_logging_and_tmp_path(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import logging
        import pytest, torch
        FOLDERS = set()

        @pytest.mark.max_leak(repeat=2)
        def test_it(tmp_path, caplog, capsys):
            FOLDERS.add(tmp_path)
            logging.getLogger().warning("once")
            assert len(caplog.records) == 1
            print("HELLO")
            assert capsys.readouterr().out == "HELLO\\n"

        def test_each_run_had_a_folder_of_its_own():
            assert len(FOLDERS) == 3
        """
    )
    result.assert_outcomes(passed=2)
    assert "HELLO" not in result.stdout.str()


def test_logged_traceback_and_extras_are_not_a_leak(run: Run) -> None:
    result = run(
        """
        import logging
        import pytest, torch

        @pytest.mark.max_leak
        def test_it():
            held = torch.ones(1024)
            try:
                raise ValueError("logged")
            except ValueError:
                logging.getLogger().exception("oops", extra={"tensor": held})
        """
    )
    result.assert_outcomes(passed=1)


def test_failing_finalizer_is_an_error_and_not_a_leak(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.fixture
        def broken():
            yield
            held = torch.ones(1024)
            raise ValueError("teardown")

        @pytest.mark.max_leak
        def test_it(broken): ...
        """
    )
    result.assert_outcomes(passed=1, errors=1)


def test_derived_class_has_the_closer_marker(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("2MiB")
        class Base:
            def test_it(self):
                torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("16MiB")
        class TestDerived(Base): ...

        class TestInherits(Base): ...

        @pytest.mark.max_peak("2MiB")
        @pytest.mark.max_peak("3MiB")
        class TestTwice(Base): ...
        """
    )
    result.assert_outcomes(passed=1, failed=1, errors=1)


def test_interrupted_run_leaves_nothing_behind(pytester: pytest.Pytester) -> None:
    before = torch.nn.Module.__init__
    pytester.makepyfile(
        test_it="""
        import pytest, torch

        @pytest.mark.gpu_cap("16MiB")
        @pytest.mark.max_peak("16MiB + 0 * fp16_size")
        def test_it():
            pytest.exit("enough")
        """
    )
    run_in_process(pytester, "--gpu-backend=cpu")
    assert torch.nn.Module.__init__ is before
    assert "__del__" not in vars(torch.nn.Module)
    torch.ones(64 * 1024**2, dtype=torch.uint8)  # no cap is left


def test_another_folders_conftest_does_not_run_our_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        **{
            "a/conftest": "def pytest_runtest_protocol(item): raise AssertionError('not of this folder')",
            "b/test_it": "import pytest\n@pytest.mark.max_leak\ndef test_it(): ...",
        }
    )
    run_in_process(pytester, "--gpu-backend=cpu", "a", "b").assert_outcomes(passed=1)


def test_skip_after_an_expected_kind_of_error_is_a_skip(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.gpu_cap("16MiB")
        def test_it():
            try:
                torch.ones(64 * 1024**2, dtype=torch.uint8)
            except torch.OutOfMemoryError:
                pytest.skip("too small a card")
        """
    )
    result.assert_outcomes(skipped=1)
    result.stdout.no_fnmatch_line("*gpu_cap FAILED*")


def test_limit_of_a_block_in_report_mode(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import torch

        def test_it(memory):
            with memory.measure("load") as load:
                torch.ones(8 * 1024**2, dtype=torch.uint8)
            load.limit("1MiB")
        """,
        "--memleak-mode=report",
    )
    result.assert_outcomes(passed=1)


def test_model_for_a_limit_without_names(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest

        @pytest.mark.max_peak("1G", model="/no/such/folder")
        def test_it(): ...
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*model='/no/such/folder' has no effect*"])


def test_model_watched_in_a_wider_fixture_is_meant_by_every_test_that_uses_it(run: Run) -> None:
    result = run(
        """
        import pytest, torch
        import pytest_memleak

        @pytest.fixture(scope="module")
        def model():
            model = torch.nn.Linear(1024, 1024, bias=False)
            pytest_memleak.watch(model)
            return model

        @pytest.mark.max_peak("2.1 * fp16_size")
        @pytest.mark.parametrize("number", range(2))
        def test_uses_it(model, number): ...

        @pytest.mark.max_peak("2.1 * fp16_size")
        def test_does_not(): ...
        """
    )
    result.assert_outcomes(passed=2, errors=1)


def test_freezing_is_not_noticed_by_other_tests(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import gc, weakref
        import pytest, torch

        class Node:
            def __init__(self):
                self.me, self.tensor = self, torch.ones(1024)

        FIRST, SECOND = [Node()], [Node()]

        @pytest.mark.max_leak
        def test_marked(): ...

        def test_unmarked():
            reference = weakref.ref(FIRST[0])
            FIRST.clear()
            gc.collect()
            assert reference() is None

        @pytest.mark.max_leak
        def test_replaces_what_was_there_before():
            SECOND[0] = Node()
        """
    )
    result.assert_outcomes(passed=3)


def test_cap_without_a_compiler_is_judged_at_the_end(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLEAK_CPU_ENGINE", "dispatch")
    pytester.makepyfile(
        test_it="""
        import pytest, torch

        @pytest.mark.gpu_cap("16MiB")
        def test_fits():
            torch.ones(4 * 1024**2, dtype=torch.uint8)

        @pytest.mark.gpu_cap("16MiB")
        def test_does_not_fit():
            torch.ones(64 * 1024**2, dtype=torch.uint8)

        @pytest.mark.gpu_cap("16MiB", free="8MiB")
        def test_the_rest_is_occupied():
            torch.ones(12 * 1024**2, dtype=torch.uint8)
        """
    )
    # In a process of its own: the engine is chosen once.
    result = pytester.runpytest_subprocess("--gpu-backend=cpu")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*gpu_cap FAILED: peak 64 MiB > cap 16 MiB*judged at the end*"])
    result.stdout.fnmatch_lines(["*the cap is judged at*"])


INNER = """
import pytest, torch

@pytest.fixture(scope="module", params=[1, 2])
def wider():
    return torch.ones(3)

@pytest.mark.max_peak("1MiB")
def test_inner(wider):
    torch.ones(1 << 17)
"""

OUTER = """
import pathlib
import pytest, torch

@pytest.fixture(scope="module")
def wider():
    return torch.ones(3)

@pytest.mark.max_peak("100MiB")
def test_outer(pytester, wider):
    pytester.makepyfile(pathlib.Path(__file__).with_name("inner.txt").read_text())
    pytester.runpytest_inprocess("--gpu-backend=cpu").assert_outcomes(passed=2)
    torch.ones(1 << 20)
"""


def test_a_run_inside_of_a_measured_one(pytester: pytest.Pytester) -> None:
    """As plugins test themselves: both measure."""
    pytester.makeconftest('pytest_plugins = "pytester"')
    pytester.makefile(".txt", inner=INNER)
    pytester.makepyfile(OUTER)
    result = pytester.runpytest_subprocess("--gpu-backend=cpu", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["1 test judged: 1 passed"])
