"""A stored run as Markdown: what stands in it, in which order, and that nothing of a test becomes more than text."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import CardInfo, CheckResult, Limit, TestRecord, Verdict
from pytest_memleak.records.run import RunInfo
from pytest_memleak.records.stored import AgainstBaseline, Change, Changed, Named, StoredRun
from pytest_memleak.report.markdown import markdown, no_results

CARD = CardInfo("simulated", "NVIDIA H200", ("cuda:0",), 139 << 30)
RUN = RunInfo("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00", (), "enforce", "simulated", 1)
PEAK = CheckResult(
    "max_peak", "pass", "max_peak passed", "cuda:0", "allocated", "predicted", 100, limit=Limit("1KiB", 1024, "a.py:1")
)
OVER = replace(PEAK, verdict="fail", message="max_peak FAILED: two numbers", measured=2048, advice="hold less")


def a_test(name: str, *results: CheckResult) -> TestRecord:
    return TestRecord(name, "a.py", 3, CARD, results)


def stored(*records: TestRecord, run: RunInfo = RUN, baseline: AgainstBaseline | None = None) -> StoredRun:
    found = Collected()
    for record in records:
        found.add(record)
    return StoredRun(run, found.totals(), (), tuple(found), baseline)


def rows(text: str) -> list[list[str]]:
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_those_that_failed_come_first_and_those_that_held_are_folded_away() -> None:
    unsure = replace(PEAK, verdict="inconclusive", message="max_peak INCONCLUSIVE: blind", measured=None)
    text = markdown(stored(a_test("a", PEAK), a_test("b", unsure), a_test("c", PEAK, OVER)))
    assert text.startswith(
        "### Memory: 1 failed, 1 inconclusive, 1 passed\n\n- 3 tests on simulated NVIDIA H200 (cuda:0)"
    )
    assert "its numbers are predicted" in text
    verdicts = [(row[0], row[1], row[3], row[4]) for row in rows(text) if "<code>" in row[1]]
    assert verdicts == [
        ("**FAILED**", "<code>c</code>", "2 KiB", "1 KiB"),
        ("**INCONCLUSIVE**", "<code>b</code>", "", "1 KiB"),
        ("passed", "<code>a</code>", "100 B", "1 KiB"),
    ]
    assert text.index("</code></summary>") < text.index("<summary>1 other test</summary>") < text.index("| passed |")
    assert "max_peak FAILED: two numbers" in text
    assert "what to do: hold less" in text


@pytest.mark.parametrize("group", ["", "@group"])
def test_changes_against_the_baseline_are_in_the_table(group: str) -> None:
    """pytest-xdist may name the group behind a test's id, and the baseline never does."""

    def held(now: int, before: int | None, verdict: Verdict = "pass") -> CheckResult:
        return replace(OVER, check="baseline", verdict=verdict, measured=now, recorded=before, limit=None)

    against = AgainstBaseline(
        *("base.txt", 4, 3, 1, False),
        missing=(Named("new"),),
        higher=(),
        lower=(Changed("lower", (Change("cuda:0", 2048, 1024),)),),
        unused=(Named("gone"),),
    )
    records = [
        a_test("higher", PEAK, held(3072, 2048, "fail")),
        a_test(f"lower{group}", PEAK, held(1024, 2048)),
        a_test(f"new{group}", PEAK, held(7, None)),
        a_test("same", PEAK, held(5, 5)),
        a_test("without", PEAK),
    ]
    text = markdown(stored(*records, baseline=against))
    assert (
        "<code>base.txt</code>: 3 tests compared with 4 entries, 1 above, 1 without an entry, 1 lower, 1 unused" in text
    )
    told = {row[1].replace("&#64;group", ""): (row[2], row[5]) for row in rows(text) if "<code>" in row[1]}
    assert told == {
        "<code>higher</code>": ("<code>baseline</code>", "+1 KiB (+50.0 %)"),
        "<code>lower</code>": ("<code>max_peak</code>", "-1 KiB (-50.0 %)"),
        "<code>new</code>": ("<code>max_peak</code>", "no entry"),
        "<code>same</code>": ("<code>max_peak</code>", "±0 B"),
        "<code>without</code>": ("<code>max_peak</code>", ""),
    }
    assert text.index("<code>lower") < text.index("<summary>3 other tests</summary>") < text.index("same</code>")


def test_report_mode_tells_what_would_fail() -> None:
    read = a_test("a", replace(OVER, enforced=False))
    text = markdown(stored(read, run=replace(RUN, mode="report")))
    assert text.startswith("### Memory: 1 test read, 1 would fail")
    assert "**would fail**" in text
    assert "max_peak FAILED: two numbers" in text


def test_names_and_messages_of_tests_stay_text() -> None:
    evil = "t[</code></details> | @all #1 `x` *b* _i_ [l](http://e.vil) <!-- \r\n| --> &amp; \\| ü \ud800]"
    failed = replace(OVER, message="max_peak FAILED:\n````\n<script>\n```", advice="")
    text = markdown(stored(a_test(evil, failed)))
    name = next(line for line in text.splitlines() if line.startswith("| **FAILED**"))
    assert len(rows(text)) == 3
    assert {len(row) for row in rows(text)} == {6}
    inside = name.split("<code>")[1].split("</code>")[0]
    assert not re.search(r"[<>|@`*\[\]\\\r\n\ud800]|&(?!#\d+;)|(?<!&)#", inside)
    assert "ü" in inside
    fences = [line for line in text.splitlines() if line.startswith("`````")]
    assert fences == ["`````text", "`````"], "a fence that is longer than any within"
    assert "<!--" not in text


EVIL = "@octo-org/team see #12, GH-12, o/r#1, !3, me@host.invalid, [vulnerability:1], https://e.vil, WWW.e.vil"


def seen(text: str) -> str:
    """What is left for GitHub and GitLab to look for references in: the text as it is shown, without <code>."""
    fenced = re.compile(r"^(`{3,})text\n.*?^\1$", re.DOTALL | re.MULTILINE)
    return html.unescape(re.sub("<code>.*?</code>", "", fenced.sub("", text)))


def test_nobody_is_mentioned_and_nothing_is_linked() -> None:
    """Entities do not help: they are signs again before a host looks for names."""
    record = replace(
        a_test(EVIL, replace(OVER, check=EVIL, device=EVIL, message=f"max_peak FAILED: {EVIL}")),
        card=replace(CARD, name=EVIL),
    )
    written = replace(
        stored(record), silent_workers=(EVIL,), baseline=AgainstBaseline(EVIL, 1, 1, 0, False, (), (), (), ())
    )
    for text in (markdown(written), no_results(EVIL)):
        assert "octo-org" in seen(text), "it is told"
        assert not re.search(r"[@#!\[](?=\w)|GH-\d", seen(text))
        shown = html.unescape(text.replace(f"max_peak FAILED: {EVIL}", ""))
        assert not re.search(r"://|www\.", shown, re.IGNORECASE)
    name = markdown(written).split("| **FAILED** | <code>")[1].split("</code>")[0]
    assert html.unescape(name).startswith("@octo-org/team see #12, GH-12"), "names of tests can be copied"


def test_it_stays_below_the_size_and_says_what_there_was_no_room_for() -> None:
    long = replace(OVER, message="max_peak FAILED: " + "€" * 3000)
    many = stored(*(a_test(f"a.py::test_{number:03}[{'|' * 100}]", long) for number in range(200)))
    text = markdown(many, page="https://host.invalid/p", marker="m", largest=20_000)
    assert len(text.encode()) <= 20_000
    assert text.startswith("<!-- m -->\n### Memory: 200 failed\n")
    assert text.endswith("[The page with every test](https://host.invalid/p)")
    shown = len([row for row in rows(text) if "<code>" in row[1]])
    assert 0 < shown < 200
    assert f"and {200 - shown} more tests, for which there is no room here" in text


def test_those_that_held_fill_what_is_left() -> None:
    many = stored(*(a_test(f"a.py::test_{number:03}", PEAK) for number in range(400)))
    text = markdown(many, largest=20_000)
    assert 19_000 < len(text.encode()) <= 20_000
    shown = len([row for row in rows(text) if "<code>" in row[1]])
    assert f"and {400 - shown} more tests, for which there is no room here" in text
    assert text.rstrip().endswith("</details>")


def test_all_that_a_test_broke_is_told_and_of_what_it_kept_the_nearest_to_its_limit() -> None:
    near, far = replace(PEAK, check="max_host_peak", measured=1000), PEAK
    unsure = replace(PEAK, check="max_leak", verdict="inconclusive", measured=None)
    text = markdown(stored(a_test("a", far, unsure, OVER), a_test("b", far, near)))
    told = [(row[1], row[2]) for row in rows(text) if "<code>" in row[1]]
    assert told == [
        (f"<code>{test}</code>", f"<code>{check}</code>")
        for test, check in (("a", "max_peak"), ("a", "max_leak"), ("b", "max_host_peak"))
    ]


def test_no_results_are_told_with_the_reason_and_the_marker() -> None:
    assert no_results("a <b>", "m").splitlines() == ["<!-- m -->", "### Memory: no results", "", "a &#60;b&#62;"]


def test_workers_that_fell_silent_are_told() -> None:
    silent = replace(stored(a_test("a", PEAK)), silent_workers=("gw1",))
    assert "**gw1 fell silent**" in markdown(silent)


def test_a_run_in_which_nothing_was_asked_says_so() -> None:
    assert markdown(stored()).startswith("### Memory: no test was judged")
