from __future__ import annotations

import subprocess
import sys

from pytest_memleak.records.collected import Collected, Highest
from pytest_memleak.records.record import CheckResult, TestRecord, Verdict
from pytest_memleak.records.run import versions


def record(
    nodeid: str,
    verdict: Verdict = "pass",
    *,
    measured: int = 1,
    worker: str = "",
    attempt: int = 1,
    enforced: bool = True,
) -> TestRecord:
    result = CheckResult("max_peak", verdict, "…", "cpu", "allocated", "measured", measured, enforced=enforced)
    return TestRecord(nodeid, "a.py", 1, results=(result,), worker=worker, attempt=attempt)


def test_a_rerun_replaces_the_result_and_is_counted() -> None:
    collected = Collected()
    collected.add(record("a::1", "fail"))
    collected.add(record("a::1", "fail"))
    collected.add(record("a::1", "pass"))
    assert [(one.verdict, one.attempt) for one in collected] == [("pass", 3)]
    totals = collected.totals()
    assert (totals.tests, totals.passed, totals.failed, totals.reruns) == (1, 1, 0, 2)


def test_an_attempt_that_the_test_counted_itself_is_kept() -> None:
    collected = Collected()
    collected.add(record("a::1", attempt=1))
    collected.add(record("a::1", attempt=2))
    assert [one.attempt for one in collected] == [2]
    collected.add(record("a::2", attempt=4))
    assert collected.totals().reruns == 4


def test_the_same_test_on_two_workers_is_two_results() -> None:
    collected = Collected()
    collected.add(record("a::1", worker="gw1"))
    collected.add(record("a::1", "fail", worker="gw0"))
    assert [(one.worker, one.attempt) for one in collected] == [("gw0", 1), ("gw1", 1)]
    assert collected.totals("gw0").failed == 1
    assert collected.totals("gw1").failed == 0
    assert collected.totals().judged == 2


def test_iteration_is_sorted_whatever_came_first() -> None:
    collected = Collected()
    for nodeid in ("b::1", "a::2", "a::1"):
        collected.add(record(nodeid))
    assert [one.nodeid for one in collected] == ["a::1", "a::2", "b::1"]
    assert len(collected) == 3


def test_every_verdict_has_its_own_count() -> None:
    collected = Collected()
    verdicts: tuple[Verdict, ...] = ("pass", "fail", "inconclusive", "not judged")
    for number, verdict in enumerate(verdicts):
        collected.add(record(f"a::{number}", verdict))
    collected.add(TestRecord("a::unasked", "a.py", 1))
    collected.add(record("a::reported", "fail", enforced=False))
    totals = collected.totals()
    assert (totals.passed, totals.failed, totals.inconclusive, totals.not_judged) == (1, 1, 1, 1)
    assert (totals.tests, totals.judged, totals.would_fail) == (6, 3, 1)


def test_the_highest_peak_is_known_with_its_test() -> None:
    collected = Collected()
    for nodeid, measured, worker in (("a::1", 5, "gw0"), ("a::2", 9, "gw1"), ("a::3", 7, "gw0")):
        collected.add(record(nodeid, measured=measured, worker=worker))
    assert collected.totals().highest_peaks == (Highest("max_peak", "cpu", "allocated", 9, "a::2"),)
    assert collected.totals("gw0").highest_peaks[0].nodeid == "a::3"


def test_workers_are_named_in_the_order_of_their_numbers() -> None:
    collected = Collected()
    for worker in ("gw10", "gw2", ""):
        collected.add(record("a::1", worker=worker))
    collected.worker_fell_silent("gw11")
    collected.worker_fell_silent("gw3")
    collected.worker_fell_silent("gw3")
    assert collected.workers == ("gw2", "gw10")
    assert collected.silent_workers == ("gw3", "gw11")


def test_versions_name_only_what_is_imported() -> None:
    found = versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["pytest-memleak"]
    code = "import sys, types; from pytest_memleak.records.run import versions; assert 'torch' not in versions();"
    code += "m = types.ModuleType('torch'); m.__version__ = '9.9'; sys.modules['torch'] = m;"
    code += "assert versions()['torch'] == '9.9'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_records_and_reports_do_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import pytest_memleak.records.collected, pytest_memleak.records.run\n"
        "import pytest_memleak.report.terminal, pytest_memleak.report.json_file, pytest_memleak.report.junit\n"
        "import pytest_memleak.cli.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
