"""``memleak summary``: its forms, its status, and where annotations point to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pytest_memleak.cli.main import main
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import AtPeak, CheckResult, Limit, TestRecord
from pytest_memleak.report.json_file import document, write
from tests.report.test_markdown import OVER, PEAK, RUN

LIMIT = Limit("1KiB", 1024, "tests/test_a.py:7 @max_peak")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In a repository whose tests are run in a folder of it."""
    for file in ("sub/tests/test_a.py", "sub/src/model.py", "conftest.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path / "sub")
    return tmp_path / "memleak.json"


def stored(path: Path, *results: CheckResult) -> None:
    found = Collected()
    found.add(TestRecord("tests/test_a.py::t[a,b:c]", "tests/test_a.py", 9, results=results))
    write(path, document(found, RUN))


def lines_of(path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["summary", str(path), "--annotations", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_an_annotation_stands_at_the_promise_as_the_repository_names_the_file(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(results, replace(OVER, limit=LIMIT, details=("100 % of it",)), PEAK)
    (line,) = lines_of(results, capsys, "--repository", "..")
    assert line == (
        "::error file=sub/tests/test_a.py,line=7,title=max_peak of tests/test_a.py%3A%3At[a%2Cb%3Ac]"
        "::max_peak FAILED: two numbers%0A100 %25 of it%0Awhat to do: hold less"
    )


@pytest.mark.parametrize(
    ("line", "by", "place"),
    [
        ("src/model.py:5", "", "src/model.py,line=5"),
        ("transformers/loading.py:50", "src/model.py:6", "src/model.py,line=6"),
        ("../conftest.py:2", "", "tests/test_a.py,line=9"),
        ("/etc/passwd:1", "", "tests/test_a.py,line=9"),
        ("a backward pass", "", "tests/test_a.py,line=9"),
        ("", "", "tests/test_a.py,line=9"),
    ],
)
def test_where_no_promise_was_written_it_stands_at_the_line_that_took_the_most(
    results: Path, capsys: pytest.CaptureFixture[str], line: str, by: str, place: str
) -> None:
    at_peak = (AtPeak(2000, 1, line, by), AtPeak(1, 1, "src/model.py:99", ""))
    limit = Limit("recorded", 1024, "memleak-baseline.txt")
    stored(results, replace(OVER, check="baseline", limit=limit, at_peak=at_peak))
    (found,) = lines_of(results, capsys)
    assert found.startswith(f"::error file={place},title=")


def test_files_that_pytest_names_from_further_up_are_found(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its root is where the ini file is."""
    stored(results, replace(OVER, limit=replace(LIMIT, source="sub/tests/test_a.py:3 @max_peak")))
    (found,) = lines_of(results, capsys, "--repository", "..")
    assert found.startswith("::error file=sub/tests/test_a.py,line=3,")


def test_a_test_that_is_not_in_the_repository_is_told_without_a_place(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(results, replace(OVER, limit=LIMIT))
    (found,) = lines_of(results, capsys, "--repository", "src")
    assert found.startswith("::error title=max_peak of tests/test_a.py%3A%3At")


def test_what_report_mode_would_not_let_pass_is_a_warning_and_what_held_is_nothing(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(results, replace(OVER, enforced=False, limit=LIMIT))
    assert lines_of(results, capsys)[0].startswith("::warning ")
    stored(results, PEAK, replace(PEAK, verdict="not judged"))
    assert lines_of(results, capsys) == []


def test_the_comment_begins_with_a_line_that_nothing_in_its_name_can_end(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored(results, PEAK)
    assert main(["summary", str(results), "--comment", "a --> <b>\n---- 2", "--page", "https://host.invalid/1"]) == 0
    first, second, *_, last = capsys.readouterr().out.splitlines()
    assert first == "<!-- pytest-memleak: a b 2 -->"
    assert second == "### Memory: 1 passed"
    assert last == "[The page with every test](https://host.invalid/1)"


@pytest.mark.parametrize("form", [["--annotations"], ["--comment", "x"], []])
def test_without_results_each_form_says_so(results: Path, capsys: pytest.CaptureFixture[str], form: list[str]) -> None:
    results.write_text('{"schema": "pytest-memleak/2"}')
    assert main(["summary", str(results), *form]) == 2
    printed = capsys.readouterr()
    assert "no results" in printed.out
    assert "pytest-memleak/2" in printed.out
    assert "use the release of pytest-memleak that wrote it" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--page", "javascript:alert(1)"], "begins with https://"),
        (["--page=--"], "--page '--': give an address"),
        (["--comment=-->"], "a letter or a number"),
        (["--comment=--"], "--comment '--': give a name with a letter"),
    ],
)
def test_words_that_cannot_be_used_are_usage_errors(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    stored(results, PEAK)
    assert main(["summary", str(results), *arguments]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""
