"""`--memleak-html` in runs of pytest: serial, on workers that may die, in report mode, with reruns, without plotly."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run
from tests.report.pages import read

pytest.importorskip("plotly", reason='needs plotly: pip install "plotly>=6"')

TESTS = """
    import pytest, torch
    KEPT = []

    @pytest.mark.max_peak("4MiB")
    @pytest.mark.parametrize("size", [1, 8], ids=["small", "<script>alert(1)</script>"])
    def test_peak(size):
        torch.ones(size * 1024**2, dtype=torch.uint8)

    @pytest.mark.max_leak
    def test_leak():
        KEPT.append(torch.ones(1024, dtype=torch.uint8))

    def test_unmarked(): ...
"""


def page_of(pytester: pytest.Pytester) -> dict[str, Any]:
    return read(Path(pytester.path, "out.html")).data()


def verdicts(data: dict[str, Any]) -> dict[str, str]:
    return {test["nodeid"].rpartition("::")[2]: test["verdict"] for test in data["overview"]["tests"]}


def test_every_measured_test_is_on_it(pytester: pytest.Pytester, run_both_ways: Run) -> None:
    run_both_ways(TESTS, "--memleak-html=out.html").assert_outcomes(passed=2, failed=2)
    data = page_of(pytester)
    assert verdicts(data) == {
        "test_peak[small]": "passed",
        "test_peak[<script>alert(1)</script>]": "failed",
        "test_leak": "failed",
    }
    assert "--memleak-html=out.html" in data["overview"]["run"]["args"]
    assert "torch" in data["overview"]["run"]["versions"]
    texts = [data[f"test-{number}"]["text"] for number in range(3) if "text" in data[f"test-{number}"]]
    assert sorted(text.partition(" ")[0] for text in texts) == ["max_leak", "max_peak"]


def test_report_mode_says_what_would_fail(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    run_on_cpu(TESTS, "--memleak-mode=report", "--memleak-html=out.html").assert_outcomes(passed=4)
    found = verdicts(page_of(pytester))
    assert found["test_leak"] == "would fail"
    assert found["test_unmarked"] == "read"


def test_a_run_without_measured_tests_has_a_page_too(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    run_on_cpu("def test_it(): ...", "--memleak-html=out.html").assert_outcomes(passed=1)
    assert page_of(pytester)["overview"]["tests"] == []


def test_the_last_attempt_of_a_rerun_is_on_it(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    pytest.importorskip("pytest_rerunfailures")
    run_on_cpu(
        """
        import pytest, torch
        RUNS = []

        @pytest.mark.max_peak("4MiB")
        def test_it():
            RUNS.append(1)
            torch.ones(8 * 1024**2 if len(RUNS) < 2 else 1, dtype=torch.uint8)
        """,
        "--reruns=2",
        "--memleak-html=out.html",
    )
    (test,) = page_of(pytester)["overview"]["tests"]
    assert (test["attempt"], test["verdict"]) == (2, "passed")


def test_a_killed_worker_is_named(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        test_it="""
        import os, pytest, signal, torch

        @pytest.mark.max_peak("4MiB")
        def test_done():
            torch.ones(1)

        @pytest.mark.max_peak("4MiB")
        def test_killed():
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    pytester.runpytest_subprocess(
        "-n", "1", "--max-worker-restart=0", "--gpu-backend=cpu", "--memleak-html=out.html", "-p", "no:cacheprovider"
    )
    data = page_of(pytester)
    assert data["overview"]["silent"] == ["gw0"]
    assert verdicts(data) == {"test_done": "passed"}


@pytest.mark.parametrize(
    ("path", "said"), [("test_it.py/out.html", "cannot be written"), (".", "is a folder"), ("new/", "path of the page")]
)
def test_a_path_that_cannot_be_written_is_refused_before_any_test(run_on_cpu: Run, path: str, said: str) -> None:
    result = run_on_cpu("def test_it(): ...", f"--memleak-html={path}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--memleak-html: *{said}*"])
    result.stdout.no_fnmatch_line("*passed*")


def test_without_plotly_the_run_does_not_begin(
    pytester: pytest.Pytester, run_on_cpu: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: find(name, *of) if name != "plotly" else None)
    result = run_on_cpu("def test_it(): ...", "--memleak-html=out.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['*--memleak-html: *plotly*pip install "plotly>=6"*'])
    assert not Path(pytester.path, "out.html").exists()


def test_a_page_that_cannot_be_written_in_the_end_leaves_the_rest(pytester: pytest.Pytester, run_on_cpu: Run) -> None:
    result = run_on_cpu(
        """
        from pathlib import Path

        def test_it():
            Path("out").write_text("in the way")
        """,
        "--memleak-html=out/page.html",
        "--memleak-json=out.json",
    )
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["--memleak-html: the page could not be written to *", "*1 passed*"])
    assert Path(pytester.path, "out.json").exists()


def test_neither_plotly_nor_torch_is_imported_for_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import sys

        def pytest_unconfigure():
            assert not {"torch", "plotly"} & sys.modules.keys()
            print("neither")
        """
    )
    pytester.makepyfile(test_it="def test_it(): ...")
    result = pytester.runpytest_subprocess("-s", "--memleak-html=out.html", "-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*neither"])
    assert Path(pytester.path, "out.html").exists()
