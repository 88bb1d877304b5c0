"""xdist, killed workers, reruns: nothing is lost, nothing counted twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import Records, Run

_SUITE = """
    import pytest, torch
    KEPT = []

    @pytest.mark.max_peak("4MiB")
    @pytest.mark.parametrize("size", [1, 2, 8, 9])
    def test_peak(size):
        torch.ones(size * 1024**2, dtype=torch.uint8)

    @pytest.mark.max_leak
    @pytest.mark.parametrize("size", [0, 1])
    def test_leak(size):
        KEPT.append(torch.ones(size * 1024**2, dtype=torch.uint8))

    @pytest.mark.max_leak(repeat=2)
    def test_repeated():
        KEPT.append(torch.ones(1024, dtype=torch.uint8))

    @pytest.mark.max_peak("fp16_size")
    def test_inconclusive(): ...

    def test_unmarked(): ...
"""


def test_serial_and_two_workers_say_the_same(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=_SUITE)
    documents: list[dict[str, Any]] = []
    for workers in ("0", "2"):
        result = pytester.runpytest_subprocess(
            "-n", workers, "--gpu-backend=cpu", "--memleak-json=out.json", "--junitxml=out.xml"
        )
        result.assert_outcomes(passed=4, failed=4, errors=1)
        documents.append(json.loads(Path(pytester.path, "out.json").read_text()))
        properties = {
            case.get("name"): {one.get("name"): one.get("value") for one in case.iter("property")}
            for case in ElementTree.parse(Path(pytester.path, "out.xml")).iter("testcase")
        }
        assert properties["test_peak[8]"]["memleak.max_peak.verdict"] == "fail"
        assert properties["test_leak[0]"]["memleak.max_leak.verdict"] == "pass"
    serial, parallel = ([_verdicts(test) for test in document["tests"]] for document in documents)
    assert serial == parallel
    assert {test["worker"] for test in documents[1]["tests"]} == {"gw0", "gw1"}
    assert "torch" in documents[1]["run"]["versions"]  # told by the workers: the controller has none


def _verdicts(test: dict[str, Any]) -> tuple[Any, ...]:
    own = [(r["check"], r["verdict"], (r["measured"] or 0) - (r["base"] or 0)) for r in test["results"]]
    return test["nodeid"], test["verdict"], own


def test_junit_counts_a_leak_once_and_an_inconclusive_test_as_an_error(
    run_on_cpu: Run, pytester: pytest.Pytester
) -> None:
    run_on_cpu(_SUITE, "--junitxml=out.xml")
    (suite,) = ElementTree.parse(Path(pytester.path, "out.xml")).iter("testsuite")
    # The attribute "tests" counts an error of a teardown as one more test before pytest 9.
    assert len(suite.findall("testcase")) == 9
    assert {name: suite.get(name) for name in ("failures", "errors")} == {"failures": "4", "errors": "1"}


def test_killed_worker_loses_nothing_that_had_finished(pytester: pytest.Pytester, records: Records) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        test_it="""
        import os, signal
        import pytest, torch

        @pytest.mark.max_peak("4MiB")
        @pytest.mark.parametrize("number", range(6))
        def test_finishes(number):
            torch.ones(1024**2, dtype=torch.uint8)

        @pytest.mark.max_leak
        def test_is_killed():
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    result = pytester.runpytest_subprocess(
        "-n", "1", "--max-worker-restart=0", "--gpu-backend=cpu", "--memleak-json=out.json"
    )
    result.assert_outcomes(passed=6, failed=1)
    assert sorted(records()) == [f"test_finishes[{number}]" for number in range(6)]
    result.stdout.fnmatch_lines(["*gw0*"])


def test_instance_that_flaky_holds_is_not_a_leak(run: Run, pytester: pytest.Pytester) -> None:
    """A stand-in with what flaky 3.8.1 does; the real one is a plugin of each run where it is installed."""
    pytester.makeconftest(
        """
        class Flaky:
            @staticmethod
            def _get_test_instance(item):
                return getattr(item, "instance", None) or item.parent.obj

            def pytest_runtest_protocol(self, item, nextitem):
                test_instance = self._get_test_instance(item)
                assert test_instance.number == 5
                runner = item.config.pluginmanager.getplugin("runner")
                runner.pytest_runtest_protocol(item, nextitem)
                return True

        PLUGIN = Flaky()
        pytest_runtest_protocol = PLUGIN.pytest_runtest_protocol
        """
    )
    result = run(
        """
        import unittest
        import pytest, torch
        number = 5
        KEPT = []

        @pytest.mark.max_leak
        class TestUnit(unittest.TestCase):
            number = 5

            def setUp(self):
                self.held = torch.ones(1024)

            def test_lets_go(self):
                pass

            def test_leaks(self):
                KEPT.append(self)

        @pytest.mark.max_leak
        def test_function():
            torch.ones(1024)
        """
    )
    # It reports as it goes, so that a leak is an error of the teardown.
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of TestUnit.test_leaks*", "*module global test_it.KEPT*"])


def test_reruns_do_not_accumulate(run_on_cpu: Run, pytester: pytest.Pytester, records: Records) -> None:
    pytest.importorskip("pytest_rerunfailures")
    result = run_on_cpu(
        """
        import pytest, torch
        KEPT, RUNS = [], []

        @pytest.mark.max_leak
        @pytest.mark.max_peak("4MiB")
        def test_leaks_at_first():
            RUNS.append(1)
            if len(RUNS) < 3:
                KEPT.append(torch.ones(1024))

        @pytest.mark.max_peak("4MiB")
        def test_peaks_at_first():
            RUNS.append(1)
            torch.ones((9 if len(RUNS) < 5 else 1) * 1024**2, dtype=torch.uint8)

        @pytest.mark.max_leak
        def test_traceback_of_the_failed_attempt_is_not_a_leak():
            held = torch.ones(1024)
            RUNS.append(1)
            assert len(RUNS) > 6
        """,
        "--reruns=3",
        "--memleak-json=out.json",
        "--junitxml=out.xml",
    )
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["rerun"]) == (3, 4)
    assert {name: (record["verdict"], record["attempt"]) for name, record in records().items()} == {
        "test_leaks_at_first": ("pass", 3),
        "test_peaks_at_first": ("pass", 2),
        "test_traceback_of_the_failed_attempt_is_not_a_leak": ("pass", 2),
    }
    for case in ElementTree.parse(Path(pytester.path, "out.xml")).iter("testcase"):
        names = [one.get("name") for one in case.iter("property")]
        assert len(names) == len(set(names))


def test_exit_first_stops_at_a_leak(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        import pytest, torch
        KEPT = []

        @pytest.mark.max_leak
        def test_leaks():
            KEPT.append(torch.ones(8))

        @pytest.mark.max_leak
        def test_not_reached(): ...
        """,
        "-x",
    )
    result.assert_outcomes(failed=1)
