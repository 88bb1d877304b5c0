"""From what pytest said to a verdict, with lines that are fed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.records.record import Block, CheckResult, TestRecord
from pytest_memleak.records.record import Verdict as Judged
from pytest_memleak.releases.case import Case, Figure
from pytest_memleak.releases.cell import Cell, Environment, Run
from pytest_memleak.releases.environment import told_by_uv
from pytest_memleak.releases.expecting import expecting
from pytest_memleak.releases.processes import Ended
from pytest_memleak.releases.table import as_json, as_markdown, as_text
from pytest_memleak.releases.verdicts import Told, judged

RUN = Run(Environment((("lib", "1.0"),), ()), ("test_it.py",), ("test_it.py",))
NODE = "test_it.py::test_it"


def result(verdict: Judged, measured: int = 100, check: str = "max_peak") -> CheckResult:
    return CheckResult(check, verdict, f"{check} {verdict}", "cuda:0", "allocated", "predicted", measured)


def document(*results: CheckResult, blocks: tuple[Block, ...] = ()) -> dict[str, Any]:
    return {"tests": [TestRecord(NODE, "test_it.py", 1, results=results, blocks=blocks).as_json()]}


def lines(*ended: bool, **outcomes: str) -> str:
    """``setup="passed", call="failed: assert 1"``; what stands behind the colon is the message."""
    said: list[dict[str, Any]] = [{"what": "collected", "nodes": [NODE]}]
    for when, outcome in outcomes.items():
        word, _, message = outcome.partition(": ")
        more = {"text": message, "message": message, "xfail": None, "seconds": 0.5}
        said.append({"what": "report", "node": NODE, "when": when, "outcome": word, **more})
    if ended != (False,):
        said.append({"what": "end", "status": 0, "elsewhere": {}})
    return "\n".join(json.dumps(one) for one in said)


def verdict(text: str, doc: dict[str, Any] | None, status: int = 0, output: str = "", timed_out: bool = False) -> Cell:
    (cell,) = judged(RUN, Ended(status, output, timed_out), Told.read(text), doc, {}).cells
    return cell


PASSED = {"setup": "passed", "call": "passed", "teardown": "passed"}


def test_one_that_passed_has_its_highest_peak_and_how_it_was_got() -> None:
    host = result("pass", 900, "max_host_peak")
    cell = verdict(lines(**PASSED), document(result("pass", 100), result("pass", 300), host))
    assert (cell.verdict, cell.peak, cell.seconds) == ("pass", 300, 1.5)
    assert cell.peak_how == "max_peak, allocated on cuda:0, predicted"


@pytest.mark.parametrize(
    ("outcomes", "results", "expected", "reason"),
    [
        ({"call": "failed: max_peak FAILED"}, [result("fail")], "fail", "max_peak fail"),
        ({"call": "failed: AssertionError: assert 1\nmore"}, [], "fail", "AssertionError: assert 1"),
        ({"call": "failed: boom"}, [result("not judged")], "fail", "boom"),
        ({"teardown": "failed: x"}, [result("inconclusive")], "inconclusive", "max_peak inconclusive"),
        ({"teardown": "failed: x"}, [result("fail")], "fail", "max_peak fail"),
        ({"teardown": "failed: x"}, [], "fail", "error in its tear-down: x"),
        ({"setup": "failed: no torch", "call": ""}, [], "not-run", "error in its set-up: no torch"),
        ({"setup": "skipped: Skipped: no card", "call": ""}, [], "not-run", "skipped: no card"),
        ({"call": "skipped: Skipped: later"}, [], "not-run", "skipped: later"),
        ({"teardown": ""}, [], "not-run", "it did not come to its end"),
        ({"call": ""}, [], "not-run", "its body was not run"),
        ({"call": "", "teardown": "failed: x"}, [], "not-run", "its body was not run"),
        ({"call": "rerun: x"}, [], "not-run", "it did not come to its end"),
        ({"crash": "failed: worker 'gw0' crashed"}, [], "fail", "worker 'gw0' crashed"),
    ],
)
def test_whatever_went_wrong_is_not_green(
    outcomes: dict[str, str], results: list[CheckResult], expected: str, reason: str
) -> None:
    said = {when: outcome for when, outcome in (PASSED | outcomes).items() if outcome}
    cell = verdict(lines(**said), document(*results), status=int("failed" in str(said)))
    assert (cell.verdict, cell.reason) == (expected, reason)


def test_an_expected_failure_is_one() -> None:
    text = lines(**PASSED | {"call": "skipped: broken"}).replace('"xfail": null', '"xfail": "known"')
    assert verdict(text, document()).verdict == "fail"


@pytest.mark.parametrize(
    ("outcomes", "xfail", "reason"),
    [
        ({"setup": "skipped: x", "call": ""}, "[NOTRUN] it hangs", "skipped: xfail(run=False) it hangs"),
        ({"call": "skipped: x"}, "reason: [NOTRUN] it hangs", "skipped: xfail(run=False) it hangs"),
        ({"setup": "skipped: x", "call": ""}, "known", "error in its set-up (xfail): known"),
    ],
)
def test_an_expected_failure_whose_body_was_not_run_is_none(outcomes: dict[str, str], xfail: str, reason: str) -> None:
    said = {when: outcome for when, outcome in (PASSED | outcomes).items() if outcome}
    cell = verdict(lines(**said).replace('"xfail": null', f'"xfail": "{xfail}"'), document())
    assert (cell.verdict, cell.reason) == ("not-run", reason)


@pytest.mark.parametrize(
    ("status", "ended", "there", "timed_out", "reason"),
    [
        (-11, True, True, False, "pytest was ended by signal 11"),
        (3, True, True, False, "pytest left with status 3: it broke"),
        (0, False, True, False, "pytest left with status 0: it broke"),
        (0, True, False, False, "pytest-memleak wrote no results: was it switched off?"),
        (-15, False, False, True, "it took longer than 1800 s and was ended"),
    ],
)
def test_a_green_test_of_a_process_that_ended_badly_is_inconclusive(
    status: int, ended: bool, there: bool, timed_out: bool, reason: str
) -> None:
    text, doc = lines(ended, **PASSED), document() if there else None
    cell = verdict(text, doc, status, "INTERNALERROR> it broke\n", timed_out)
    assert (cell.verdict, cell.reason) == ("inconclusive", reason)
    red = verdict(lines(ended, **PASSED | {"call": "failed: x"}), doc, status, "", timed_out)
    assert red.verdict == "fail", "that it failed is known"


def test_a_rerun_replaces_what_was_said_before() -> None:
    first = lines(**PASSED | {"call": "rerun: x"})
    assert verdict(f"{first}\n{lines(**PASSED)}", document()).verdict == "pass"


def test_what_a_rerun_replaces_is_its_own_attempt_alone() -> None:
    """The first of two of the same name failed for good, the second one once only."""
    said = [lines(**PASSED | {"call": outcome}) for outcome in ("failed: first", "rerun: second", "passed")]
    cell = verdict("\n".join(said), document(), status=1)
    assert (cell.verdict, cell.reason) == ("fail", "first")


@pytest.mark.parametrize("outcome", ["passed", "skipped: Skipped: x", "failed: second"])
def test_no_later_report_replaces_a_failure(outcome: str) -> None:
    """Those of subtests come before their test's own; a test that is named twice has all of them twice."""
    subtest = lines(call="failed: first")
    for text in (f"{subtest}\n{lines(**PASSED | {'call': outcome})}", lines(**PASSED | {"call": "failed: first"})):
        cell = verdict(f"{text}\n{lines(**PASSED | {'call': outcome})}", document(), status=1)
        assert (cell.verdict, cell.reason) == ("fail", "first")
        assert ("second" in cell.failure) == (outcome == "failed: second"), "a case looks for its words in all"


def test_no_later_report_replaces_an_expected_failure() -> None:
    subtest = lines(call="skipped: first").replace('"xfail": null', '"xfail": "known"')
    text = "\n".join([lines(setup="passed"), subtest, lines(call="passed", teardown="passed")])
    assert verdict(text, document()).verdict == "fail"


def test_a_pytest_that_fails_without_a_failed_test_is_in_doubt() -> None:
    output = "ERROR: Coverage failure: total of 20 is less than fail-under=90\n=== 1 passed ==="
    cell = verdict(lines(**PASSED), document(), 1, output)
    assert cell.verdict == "inconclusive"
    assert cell.reason == (
        "pytest left with status 1, though no test failed: Coverage failure: total of 20 is less than fail-under=90"
    )


@pytest.mark.parametrize(
    ("outcomes", "complete"),
    [
        ({}, True),
        ({"call": "failed: x"}, True),
        ({"call": "skipped: later"}, True),
        ({"setup": "skipped: no card", "call": ""}, True),
        ({"setup": "failed: No space left on device", "call": ""}, False),
        ({"teardown": ""}, False),
        ({"call": ""}, False),
    ],
)
def test_what_has_to_be_run_again_is_not_complete(outcomes: dict[str, str], complete: bool) -> None:
    said = {when: outcome for when, outcome in (PASSED | outcomes).items() if outcome}
    ended = Ended(int("failed" in str(said)), "")
    outcome = judged(RUN, ended, Told.read(lines(**said)), document(), {})
    assert (outcome.complete, outcome.collected) == (complete, True)


def test_a_line_that_was_cut_off_is_no_line() -> None:
    assert verdict(lines(**PASSED)[:-10], document()).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("E   ImportError: x\n=== 1 error in 0.1s ===", "ImportError: x"),
        ("usage: pytest\npytest: error: unrecognized arguments: --y\n  inifile: None", "unrecognized arguments: --y"),
        ("OSError: [Errno 28] No space left on device: 'a'\n!!! x !!!", "the disk is full: OSError: [Errno 28]"),
        ("", "it said nothing"),
    ],
)
def test_a_pytest_that_told_of_no_test_gives_its_last_telling_line(output: str, reason: str) -> None:
    cell = verdict("", None, 4, output)
    assert cell.verdict == "not-run"
    assert cell.test == "test_it.py"
    assert cell.reason.startswith(f"pytest left with status 4: {reason}")


def test_uvs_trees_become_a_line() -> None:
    said = (
        "  × No solution found when resolving dependencies:\n  ╰─▶ Because there is no version of a==9 and\n      you "
    )
    said += "require a==9, your requirements are\n      unsatisfiable.\n\nhint: try another\n"
    assert told_by_uv(said) == (
        "No solution found when resolving dependencies: Because there is no version of a==9 and you require a==9, "
        "your requirements are unsatisfiable."
    )


@pytest.mark.parametrize(
    "said",
    [
        "error: Failed to install: a.whl\n  Caused by: it is damaged\n",
        "error: Failed to install: a.whl\n  cause: it is damaged\n",
    ],
)
def test_causes_stand_behind_what_they_caused(said: str) -> None:
    assert told_by_uv(said) == "Failed to install: a.whl: it is damaged"


def case(*figures: Figure) -> Case:
    return Case("c", Path("c.toml"), "T", "lib", ("1.0",), ("2.0",), "c.py::t", fails_with="max_peak", figures=figures)


@pytest.mark.parametrize(
    ("figure", "differs"),
    [
        (Figure("good", 102, 2, "H200"), []),
        (Figure("good", 103, 2, "H200"), ["max_peak 100 B, expected 103 B ± 2 B (H200)"]),
        (Figure("good", 101, 0, "H200"), ["max_peak 100 B, expected 101 B to the byte (H200)"]),
        (Figure("bad", 999, 0, "H200"), []),
        (Figure(("<2",), 40, 0, "H200", block="load"), []),
        (Figure("good", 1, 0, "H200", check="max_leak"), ["max_leak was not read, expected 1 B"]),
    ],
)
def test_figures_are_held_against_what_was_read(figure: Figure, differs: list[str]) -> None:
    run = dataclasses.replace(RUN, case=case(figure))
    blocks = (Block("load", "cuda:0", "allocated", "predicted", 40, 0),)
    told = Told.read(lines(**PASSED))
    outcome = expecting(judged(run, Ended(0, ""), told, document(result("pass"), blocks=blocks), {}))
    (cell,) = outcome.cells
    assert list(cell.differs) == differs
    assert cell.fine == (not differs)


def test_the_tables_show_what_is_expected_apart() -> None:
    versions = (("lib", "1.0"),)
    cells = [
        Cell(versions, "c.py::t", "pass", peak=2**20, case="c", expected="pass"),
        Cell(versions, "c.py::t", "fail", "max_peak | FAILED", case="c", expected="fail", stored="2026-01-01 10:00"),
        Cell(versions, "c.py::t", "not-run", "gone", case="c", expected="fail", differs=("expected fail",)),
    ]
    text = as_text(cells, {"c": "Weights"}, 120)
    assert text.splitlines()[0] == "c: Weights"
    assert "fail (as expected)" in text
    assert "not-run (EXPECTED fail)  -      expected fail; gone" in text
    assert "3 cells: 1 pass, 1 fail, 1 not-run; 1 not as expected" in text
    assert "--fresh" in text
    markdown = as_markdown(cells, {"c": "Weights"})
    assert "| 1.0 | fail (as expected) | - | max\\_peak \\| FAILED |" in markdown
    data = json.loads(as_json(cells, {"interrupted": False}))
    assert data["schema"] == "pytest-memleak-matrix/1"
    assert [one["as_expected"] for one in data["cells"]] == [True, True, False]
    assert {"versions", "test", "verdict", "peak", "reason"} <= set(data["cells"][0])


def test_a_cell_comes_back_from_the_store_as_it_went() -> None:
    cell = verdict(lines(**PASSED), document(result("pass")))
    again = Cell.from_store(json.loads(json.dumps(cell.to_store())), "2026-01-01 10:00")
    assert again == dataclasses.replace(cell, stored="2026-01-01 10:00")
