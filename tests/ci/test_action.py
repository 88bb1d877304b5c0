"""The composite action from end to end: its own steps, on a small repository that uses it, without GitHub."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pytest_memleak.records.collected import Collected
from pytest_memleak.report.json_file import document
from tests.ci.composite import Composite
from tests.ci.programs import ROOT, shown_of_the_sample
from tests.report.test_markdown import RUN

MARKER = "<!-- pytest-memleak: CI / memory -->"
TESTS = "tests/test_training.py"


@pytest.fixture
def job(tmp_path: Path) -> Composite:
    repository = Path(shutil.copytree(ROOT / "fixtures" / "downstream", tmp_path / "repository"))
    return Composite(repository, tmp_path / "machine")


@pytest.fixture
def nothing_runs(job: Composite) -> Composite:
    """pytest ends at once, as with a mistake on its command line: what comes after is the same, and takes no time."""
    job.programs.instead_of_pytest("import sys; sys.exit(4)")
    return job


def line_of(job: Composite, text: str, file: str = TESTS) -> int:
    lines = (job.repository / file).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="no card is simulated beside a real one")
def test_broken_promises_are_in_the_summary_at_their_lines_and_in_one_comment(job: Composite) -> None:
    pytest.importorskip("plotly")
    stranger = {"id": 1, "user": {"type": "User"}, "body": f"{MARKER}\nnot ours"}
    job.host(comments=[stranger])
    ran = job.run(
        baseline="memleak-baseline.txt", install="torch --index-url 'a b'\n\n-e .", args="-p no:cacheprovider"
    )
    assert ran.status == 1, ran.output
    assert job.programs.installed == ["torch --index-url a b", "-e .", f"{ROOT}[html]"]

    assert "### Memory: 3 failed, 2 passed" in shown_of_the_sample()
    assert ran.summary.startswith(shown_of_the_sample())
    rows = {
        line.split("<code>")[1].split("</code>")[0]: line for line in ran.summary.splitlines() if "| <code>" in line
    }
    row = rows[f"{TESTS}::test_scores_are_promised_too_little"]
    assert row.startswith("| **FAILED** | <code>")
    assert row.endswith("</code> | <code>max_peak</code> | 10 MiB | 8 MiB | ±0 B | allocated on cuda:0, predicted |")
    assert (
        "| <code>baseline</code> | 10 MiB | 6 MiB | +4 MiB (+66.7 %) |" in rows[f"{TESTS}::test_scores_took_less_once"]
    )
    assert "| passed |" in rows[f"{TESTS}::test_scores_fit"]
    assert "| -2 MiB (-16.7 %) |" in rows[f"{TESTS}::test_scores_fit"]
    assert len(rows) == 6

    places = [note.split(",title=")[0] for note in ran.annotations]
    marker = line_of(job, 'max_peak("8MiB")')
    leak = line_of(job, "def test_a_loss_is_kept") - 1
    copied = line_of(job, "logits.float()", "tinytrain/__init__.py")
    assert sorted(places) == sorted(
        [
            f"::error file={TESTS},line={marker}",
            f"::error file={TESTS},line={leak}",
            f"::error file=tinytrain/__init__.py,line={copied}",
        ]
    )
    page_of_docs = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    for place in (f"{TESTS}:{marker}", f"{TESTS}:{leak}", f"tinytrain/__init__.py:{copied}"):
        assert f"`{place}`" in page_of_docs

    page = "[The page with every test](https://host.invalid/artifacts/1)"
    assert page in ran.summary
    assert ran.uploaded[0]["name"] == "memleak"
    uploaded = Path(ran.uploaded[0]["path"])
    assert {"memleak.html", "memleak.json"} <= {file.name for file in uploaded.iterdir()}

    before, comment = job.hub["comments"]
    assert before == stranger
    assert comment["body"] == f"{MARKER}\n{ran.summary}"
    assert job.hub["token"] == "the-token"

    again = job.run(args="-p no:cacheprovider -k 'scores_fit and not loss'")
    assert again.status == 0, again.output
    assert again.annotations == []
    before, comment = job.hub["comments"]
    assert before == stranger
    assert "### Memory: 1 passed" in comment["body"]
    assert "FAILED" not in comment["body"]


def test_without_results_nothing_seems_to_be_well(nothing_runs: Composite) -> None:
    earlier = {"id": 5, "user": {"type": "Bot"}, "body": f"{MARKER}\r\n### Memory: 2 passed"}
    nothing_runs.host(comments=[earlier])
    ran = nothing_runs.run()
    assert ran.status == 4
    assert "### Memory: no results" in ran.summary
    (note,) = ran.annotations
    assert note.startswith("::error title=memleak has no results::")
    (comment,) = nothing_runs.hub["comments"]
    assert comment["id"] == 5
    assert "no results" in comment["body"]


def test_a_run_without_results_is_red_even_if_pytest_is_content(nothing_runs: Composite) -> None:
    nothing_runs.programs.instead_of_pytest("")
    assert nothing_runs.run().status == 1


def test_inputs_are_words_and_no_program(nothing_runs: Composite) -> None:
    nothing_runs.programs.instead_of_pytest(
        "import pathlib, sys; pathlib.Path('told').write_text('\\n'.join(sys.argv[1:]))"
    )
    args = "-k 'a b' $(touch bad) `touch bad`;touch bad *\n--co \"a \\\"q\\\" b\" '' x\\ y"
    nothing_runs.run(args=args, gpu_cap="$(touch bad)", baseline="a b.txt")
    told = (nothing_runs.repository / "told").read_text().splitlines()
    assert told[2:5] == ["--gpu-backend=simulated", "--gpu-cap=$(touch bad)", "--memleak-baseline=a b.txt"]
    assert told[5:13] == ["-k", "a b", "$(touch", "bad)", "`touch", "bad`;touch", "bad", "*"]
    assert told[13:] == ["--co", 'a "q" b', "", "x y"]
    assert not (nothing_runs.repository / "bad").exists()


def test_quotes_that_do_not_end_are_an_error_and_no_run_without_arguments(nothing_runs: Composite) -> None:
    ran = nothing_runs.run(args="-k 'a b")
    assert ran.status not in (0, 4)
    assert "numeric argument required" not in ran.output
    assert "No closing quotation: -k 'a b" in ran.output


@pytest.mark.parametrize(
    ("token", "refuses", "why"),
    [
        ("", "", "there is no token."),
        (
            "t",
            "Resource not accessible by integration (HTTP 403)",
            "gh: Resource not accessible by integration (HTTP 403). The token needs pull-requests: write",
        ),
    ],
)
def test_what_keeps_a_comment_away_is_a_notice_and_no_failure(
    nothing_runs: Composite, token: str, refuses: str, why: str
) -> None:
    nothing_runs.token = token
    nothing_runs.host(refuses=refuses)
    ran = nothing_runs.run()
    assert ran.status == 4, "as pytest ended"
    assert f"::notice title=memleak::No comment was written: {why}" in ran.output
    assert not nothing_runs.hub.get("comments")


def test_a_runner_without_gh_says_so(nothing_runs: Composite) -> None:
    nothing_runs.programs.remove("gh")
    if shutil.which("gh"):
        pytest.skip("this machine has a gh of its own")
    assert "this runner has no gh" in nothing_runs.run().output


def test_comment_and_artifact_can_be_left_out(nothing_runs: Composite) -> None:
    ran = nothing_runs.run(comment="false", artifact="")
    assert ran.uploaded == ()
    assert not (nothing_runs.machine / "gh.json").exists()


@pytest.mark.parametrize("comment", ["true", "false"])
def test_a_name_that_cannot_be_a_comment_s_is_no_fault_of_the_tests(job: Composite, comment: str) -> None:
    job.programs.pytest_comes_to(document(Collected(), RUN), 0)
    job.host()
    ran = job.run(comment=comment, comment_name="--")
    assert ran.status == 0, ran.output
    assert job.hub == {}
    assert ("give a name with a letter or a number in it" in ran.output) is (comment == "true")
    assert ("No comment was written: there is no text for it" in ran.output) is (comment == "true")
