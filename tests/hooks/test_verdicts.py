"""What becomes of a test whose promise holds, breaks, or cannot be judged."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import Records, Run

MIB = 1024**2


def test_peak_green_and_red(run_both_ways: Run, records: Records) -> None:
    result = run_both_ways(
        """
        import pytest, torch

        @pytest.mark.max_peak("12MiB")
        def test_fits():
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("12MiB")
        def test_does_not():
            torch.ones(16 * 1024**2, dtype=torch.uint8)
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*max_peak FAILED: peak 16* MiB > limit 12 MiB (allocated on c*"])
    fits, does_not = records()["test_fits"], records()["test_does_not"]
    assert (fits["verdict"], does_not["verdict"]) == ("pass", "fail")
    assert fits["results"][0]["measured"] - fits["results"][0]["base"] == 8 * MIB
    assert does_not["results"][0]["measured"] - does_not["results"][0]["base"] == 16 * MIB


def test_base_of_a_wider_fixture_is_in_the_peak_and_shown(run: Run, records: Records) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.fixture(scope="module")
        def held():
            transient = torch.ones(64 * 1024**2, dtype=torch.uint8)
            del transient
            return torch.ones(10 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("12MiB")
        def test_it(held):
            torch.ones(4 * 1024**2, dtype=torch.uint8)
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*base 10* MiB + test 4* MiB = peak 14* MiB*"])
    (peak,) = records()["test_it"]["results"]
    # The fixture's own transient of 64 MiB is not the test's.
    assert peak["measured"] - peak["base"] == 4 * MIB


def test_memory_of_a_wider_fixture_that_torch_did_not_allocate_is_in_the_base(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import numpy, pytest, torch

        @pytest.fixture(scope="module")
        def held():
            return torch.from_numpy(numpy.ones(10 * 1024**2, dtype=numpy.uint8))

        @pytest.mark.max_peak("20MiB")
        @pytest.mark.parametrize("more", [4, 12])
        def test_it(held, more):
            torch.ones(more * 1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*base 10* MiB + test 12* MiB = peak 22* MiB*"])


@pytest.mark.parametrize("mapped", [True, False])
def test_no_tighter_limit_is_offered_for_weights_that_were_only_mapped(
    mapped: bool, run_on_cpu: Run, pytester: pytest.Pytester
) -> None:
    torch.save({"weight": torch.ones(1024, 2048), "bias": torch.ones(1024)}, pytester.path / "weights.pt")
    result = run_on_cpu(
        f"""
        import pytest, torch

        @pytest.mark.max_peak("16MiB")
        def test_it():
            del torch.load("weights.pt", mmap={mapped})["bias"]
        """,
        "-vv",
    )
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*could be tightened*")


def test_function_fixtures_are_part_of_the_window_and_told_apart(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.fixture
        def greedy():
            torch.ones(20 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("12MiB")
        def test_it(greedy):
            torch.ones(1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*set-up of its fixtures: 20* MiB, in the body: 1* MiB*"])


def test_leak_is_one_failure_and_names_its_owner(run_both_ways: Run, records: Records) -> None:
    result = run_both_ways(
        """
        import pytest, torch
        KEPT = []

        @pytest.mark.max_leak
        def test_keeps():
            KEPT.append(torch.ones(1024**2, dtype=torch.uint8))

        @pytest.mark.max_leak()
        def test_clean():
            torch.ones(1024**2, dtype=torch.uint8)
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*max_leak FAILED: still held after the test 1 MiB > limit 0 B*", "*test_it.KEPT*"])
    assert records()["test_keeps"]["results"][0]["measured"] == MIB


def test_failed_body_is_its_own_failure_and_not_judged(run: Run, records: Records) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("1MiB")
        @pytest.mark.max_leak
        def test_it():
            torch.ones(8 * 1024**2, dtype=torch.uint8)
            assert 1 == 2
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert 1 == 2*"])
    assert {one["verdict"] for one in records()["test_it"]["results"]} == {"not judged"}


def test_skip_imports_no_torch_and_xfail_keeps_its_meaning(run: Run) -> None:
    result = run(
        """
        import pytest, torch
        KEPT = []

        @pytest.mark.skip
        @pytest.mark.max_peak("1MiB")
        def test_skipped(): ...

        @pytest.mark.xfail
        @pytest.mark.max_peak("1MiB")
        def test_peak_expected():
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.xfail
        @pytest.mark.max_leak
        def test_leak_expected():
            KEPT.append(torch.ones(8))

        @pytest.mark.xfail(strict=True)
        @pytest.mark.max_leak
        def test_leak_expected_in_vain(): ...

        @pytest.mark.max_leak
        def test_skips_itself():
            pytest.skip("not here")
        """
    )
    result.assert_outcomes(skipped=2, xfailed=2, failed=1)


@pytest.mark.parametrize("kind", ["function", "class", "module"])
def test_markers_on_functions_classes_and_modules(run: Run, kind: str) -> None:
    mark = 'pytest.mark.max_peak("1MiB")'
    result = run(
        f"""
        import pytest, torch
        {"pytestmark = " + mark if kind == "module" else ""}

        {"@" + mark if kind == "class" else ""}
        class TestIt:
            {"@" + mark if kind == "function" else ""}
            def test_it(self):
                torch.ones(8 * 1024**2, dtype=torch.uint8)

            @pytest.mark.max_peak("16MiB")
            def test_closest_wins(self):
                torch.ones(8 * 1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(passed=1, failed=1)


def test_parametrized_with_a_limit_of_its_own(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("4MiB")
        @pytest.mark.parametrize("size", [
            pytest.param(2), pytest.param(8), pytest.param(9, marks=pytest.mark.max_peak("16MiB")),
        ])
        def test_it(size):
            torch.ones(size * 1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(passed=2, failed=1)


def test_async_tests(run: Run) -> None:
    pytest.importorskip("pytest_asyncio")
    result = run(
        """
        import asyncio, pytest, torch

        @pytest.fixture
        async def held():
            return torch.ones(2 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("4MiB")
        async def test_it(held):
            await asyncio.sleep(0)
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_leak
        async def test_clean(held):
            await asyncio.sleep(0)
        """,
        "-p",
        "asyncio",
        "-o",
        "asyncio_mode=auto",
    )
    result.assert_outcomes(passed=1, failed=1)


def test_unittest_test_cases(run_both_ways: Run) -> None:
    result = run_both_ways(
        """
        import unittest, pytest, torch

        @pytest.mark.max_peak("4MiB")
        class Case(unittest.TestCase):
            def setUp(self):
                self.held = torch.ones(1024**2, dtype=torch.uint8)

            def test_green(self): ...

            def test_red(self):
                torch.ones(8 * 1024**2, dtype=torch.uint8)

            @pytest.mark.max_leak
            def test_own_attribute_is_released_by_pytest(self):
                self.more = torch.ones(8)

            @pytest.mark.max_leak
            def test_class_attribute_is_not(self):
                type(self).more = torch.ones(8)

            @pytest.mark.max_leak(repeat=3)
            def test_repeated(self):
                self.more = torch.ones(8)

            @unittest.skip("no")
            def test_skipped(self): ...

            def test_fails_by_itself(self):
                torch.ones(8 * 1024**2, dtype=torch.uint8)
                self.assertEqual(1, 2)
        """
    )
    result.assert_outcomes(passed=3, failed=3, skipped=1)
    result.stdout.fnmatch_lines(["*Case.more*"])


def test_report_mode_measures_all_and_fails_none(run: Run, records: Records) -> None:
    result = run(
        """
        import pytest, torch
        KEPT = []

        @pytest.mark.max_peak("1MiB")
        def test_over():
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        def test_leaks():
            KEPT.append(torch.ones(1024**2, dtype=torch.uint8))

        def test_fails():
            assert 0
        """,
        "--memleak-mode=report",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=1)
    leaks = {one["check"]: one["measured"] for one in records()["test_leaks"]["results"]}
    assert leaks["max_leak"] == MIB
    # Worst first.
    result.stdout.fnmatch_lines(["over *8* MiB *test_over", "*1* MiB *1 MiB *test_leaks"])


def test_defaults_from_ini_and_their_exceptions(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nmemleak_max_peak = 4MiB\n")
    result = run(
        """
        import pytest, torch

        def test_default():
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_peak("16MiB")
        def test_marker_wins():
            torch.ones(8 * 1024**2, dtype=torch.uint8)

        @pytest.mark.memleak_off
        def test_off():
            torch.ones(8 * 1024**2, dtype=torch.uint8)
        """
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*memleak_max_peak in tox.ini*"])


def test_limit_in_terms_of_the_model_the_test_built(run: Run) -> None:
    result = run(
        """
        import pytest, torch

        @pytest.mark.max_peak("2.1 * fp16_size")
        def test_green():
            torch.nn.Linear(1024, 1024, bias=False)

        @pytest.mark.max_peak("1.5 * fp16_size")
        def test_red_although_the_model_is_gone():
            model = torch.nn.Linear(1024, 1024, bias=False)
            del model

        @pytest.mark.max_peak("fp16_size")
        def test_no_model(): ...

        @pytest.mark.max_peak("fp16_size")
        def test_two_models():
            torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        @pytest.fixture
        def model():
            return torch.nn.Linear(1024, 1024, bias=False)

        @pytest.mark.max_peak("2.1 * fp16_size", model="fixture:model")
        def test_named(model):
            torch.nn.Linear(2, 2)
        """
    )
    result.assert_outcomes(passed=2, failed=1, errors=2)
    result.stdout.fnmatch_lines(["*fp16_size = 2,097,152 B: 1,048,576 parameters × 2 B of Linear*"])


def test_host_peak_is_growth_of_committed_memory(run_on_cpu: Run, records: Records) -> None:
    result = run_on_cpu(
        """
        import mmap, time
        import pytest

        HELD = bytearray(b"x") * (64 * 1024**2)  # there before: not the test's

        @pytest.mark.max_host_peak("32MiB")
        def test_green():
            bytearray(b"x") * (4 * 1024**2)

        @pytest.mark.max_host_peak("32MiB")
        def test_red():
            held = bytearray(b"x") * (96 * 1024**2)
            time.sleep(0.5)  # it is sampled: a peak has to last for a sample, on a loaded machine too
            del held

        @pytest.mark.max_host_peak("32MiB")
        def test_reserved_but_never_touched_is_not_committed():
            mmap.mmap(-1, 1024**3).close()
        """,
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*max_host_peak FAILED: host peak grew by 9* MiB > limit 32 MiB (committed host*sampled*"]
    )
    result.stdout.fnmatch_lines(["*resident high-water*"])
    (red,) = records()["test_red"]["results"]
    assert 90 * MIB < red["measured"] < 120 * MIB
