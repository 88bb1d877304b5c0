from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from io import StringIO

from _pytest._io import TerminalWriter

from pytest_memleak.budget.term import Term
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import Block, CardInfo, CheckResult, Limit, TestRecord
from pytest_memleak.report.terminal import Line, summary_lines, write
from pytest_memleak.wording import LET_GO

GIB = 1024**3
CPU = CardInfo("cpu", "CPU", ("cpu",), 64 * GIB, cap=16 * GIB, enforcement="enforced on CPU tensors")
PEAK = CheckResult(
    "max_peak", "pass", "max_peak passed: peak 900 MiB ≤ limit 1 GiB", "cpu", "allocated", "measured", 900 * 1024**2, 0
)


def with_limit(result: CheckResult, bytes_: int, text: str = "1G", source: str = "a.py:1 @max_peak") -> CheckResult:
    return replace(result, limit=Limit(text, bytes_, source))


def record(nodeid: str, *results: CheckResult, card: CardInfo | None = CPU, worker: str = "") -> TestRecord:
    return TestRecord(nodeid, nodeid.split("::")[0], 1, card=card, results=results, worker=worker)


def lines(
    records: Iterable[TestRecord],
    *,
    mode: str = "enforce",
    verbosity: int = 0,
    width: int = 80,
    silent: Iterable[str] = (),
) -> list[Line]:
    collected = Collected()
    for one in records:
        collected.add(one)
    for worker in silent:
        collected.worker_fell_silent(worker)
    return summary_lines(collected, mode=mode, verbosity=verbosity, width=width)


def text(found: list[Line]) -> str:
    return "\n".join(line.text for line in found)


FAILED = replace(PEAK, verdict="fail", message="max_peak FAILED: peak 2 GiB > limit 1 GiB", measured=2 * GIB)
UNSURE = replace(PEAK, verdict="inconclusive", message="max_peak INCONCLUSIVE: a child")
UNJUDGED = replace(PEAK, verdict="not judged", message="max_peak not judged: the test failed first")


def test_nothing_is_said_when_nothing_was_asked() -> None:
    assert lines([]) == []
    assert lines([record("a.py::t", card=CardInfo("cpu", "CPU", ("cpu",), GIB))]) == []


def test_the_header_counts_every_verdict_and_is_red_when_one_is_bad() -> None:
    found = lines([record("a::1", PEAK), record("a::2", FAILED), record("a::3", UNSURE), record("a::4", UNJUDGED)])
    assert found[0].text == "3 tests judged: 1 passed, 1 failed, 1 inconclusive, 1 not judged"
    assert found[0].markup["red"]
    assert lines([record("a::1", PEAK)])[0].markup["green"]
    assert lines([record("a::1", PEAK), record("a::2", UNJUDGED)])[0].markup["yellow"]


def test_the_card_is_named_once_and_with_counts_where_tests_had_different_ones() -> None:
    assert text(lines([record("a::1", PEAK), record("a::2", PEAK)])).count("the CPU stands in for a 16 GiB card") == 1
    other = replace(CPU, cap=8 * GIB)
    both = text(lines([record("a::1", PEAK), record("a::2", PEAK), record("a::3", PEAK, card=other)], width=120))
    assert "16 GiB card" in both
    assert "[2 tests]" in both
    assert "8 GiB card" in both
    assert "[1 test]" in both


def test_a_budget_more_than_half_unused_is_listed_with_what_it_could_be() -> None:
    found = text(lines([record("a::1", with_limit(replace(PEAK, measured=GIB), 12 * GIB, "12G"))], width=120))
    assert "more than half unused" in found
    assert 'a.py:1 @max_peak: "12G" -> "1.1GiB" (1 GiB of 12 GiB used)' in found


def test_a_budget_half_used_is_not_listed() -> None:
    assert "unused" not in text(lines([record("a::1", with_limit(replace(PEAK, measured=GIB // 2), GIB))]))


def test_default_verbosity_lists_no_tests_and_more_of_it_lists_terms() -> None:
    limit = Limit("fp16_size", GIB, "a.py:1 @max_peak", (Term("fp16_size", GIB, "512 parameters × 2 B of Tiny"),))
    one = replace(
        record("a.py::test_one", replace(PEAK, limit=limit)),
        blocks=(Block("load", "cpu", "allocated", "measured", 7, 3),),
    )
    assert "a.py::test_one" not in text(lines([one]))
    verbose = text(lines([one], verbosity=1))
    assert "a.py::test_one" in verbose
    assert PEAK.message in verbose
    assert "load: peak 7 B, grown 3 B" in verbose
    assert "512 parameters" not in verbose
    very = text(lines([one], verbosity=2))
    assert "943,718,400 B" in very
    assert "fp16_size = 1,073,741,824 B: 512 parameters × 2 B of Tiny" in very


def test_quiet_says_problems_in_one_line_and_nothing_else() -> None:
    assert lines([record("a::1", PEAK)], verbosity=-1) == []
    found = lines([record("a::1", FAILED), record("a::2", UNSURE), record("a::3", PEAK)], verbosity=-1)
    assert [line.text for line in found] == ["memleak: 1 failed, 1 inconclusive: a::1, a::2"]


def test_what_was_predicted_says_so_when_quiet() -> None:
    card = replace(CPU, backend="simulated", name="NVIDIA H200")
    found = lines([record("a::1", PEAK, card=card), record("a::2", card=card), record("a::3", PEAK)], verbosity=-1)
    assert [line.text for line in found] == ["memleak: 2 tests on a simulated card: predicted"]


def test_tests_whose_branches_are_not_followed_are_counted() -> None:
    """Also those that passed: nobody would look for a note there."""
    note = f"{LET_GO}, 2 times: what is decided by such a number is not noticed, at a.py:3 (float())"
    noted = [replace(record(f"a::{number}", one), notes=(note,)) for number, one in enumerate([PEAK, FAILED])]
    said = "2 tests let unknown values become ordinary numbers: their branches are not followed (-v names the lines)"
    assert said in text(lines([*noted, record("a::3", PEAK)], width=120))
    assert f"memleak: {said}" in text(lines(noted, width=160, verbosity=-1))
    assert "a.py:3 (float())" in text(lines(noted, verbosity=1, width=160))
    assert "ordinary" not in text(lines([record("a::3", PEAK)], width=120))


def test_the_quiet_line_stays_within_the_width() -> None:
    many = [record(f"tests/test_file.py::test_number_{number}", FAILED) for number in range(40)]
    (line,) = lines(many, verbosity=-1)
    assert len(line.text) <= 80
    assert line.text.endswith("more")
    named = line.text.count("test_number_")
    assert f"and {40 - named} more" in line.text


def test_report_mode_shows_every_test_worst_first_in_aligned_columns() -> None:
    shown = [
        record("a.py::small", replace(PEAK, measured=1024, enforced=False)),
        record("a.py::over", with_limit(replace(FAILED, measured=2048, enforced=False), 1024)),
        record(
            "a.py::big",
            replace(PEAK, measured=5 * GIB, enforced=False),
            replace(PEAK, check="max_leak", measured=4096, enforced=False),
        ),
    ]
    found = lines(shown, mode="report")
    assert found[0].text == "3 tests read in report mode: 1 would fail"
    table = [line.text for line in found if "a.py::" in line.text]
    assert [line.split("::")[1] for line in table] == ["over", "big", "small"]
    assert len({line.index("a.py::") for line in table}) == 1
    assert "5 GiB" in table[1]
    assert "4 KiB" in table[1]
    heading = next(line.text for line in found if line.text.endswith("test"))
    ends = {line.index(size) + len(size) for line, size in zip(table, ("2 KiB", "5 GiB", "1 KiB"), strict=True)}
    assert ends == {heading.index("peak") + len("peak")}
    assert table[0].startswith("over")
    assert [line.text.split("::")[1] for line in found if line.markup.get("red")] == ["over"]
    assert "peak on cpu: allocated, measured" in text(found)


def test_a_limit_that_is_not_enforced_is_marked_and_not_coloured_as_a_failure() -> None:
    over = with_limit(replace(FAILED, enforced=False), GIB)
    (line,) = (line for line in lines([record("a::1", over)], mode="report", verbosity=1) if "FAILED" in line.text)
    assert line.text.endswith("[not enforced]")
    assert not line.markup


def test_report_mode_is_quiet_about_tests_that_would_pass() -> None:
    over = replace(FAILED, enforced=False)
    found = lines([record("a::1", over), record("a::2", PEAK)], mode="report", verbosity=-1)
    assert [line.text for line in found] == ["memleak: 1 would fail: a::1"]


def test_no_line_is_wider_than_the_terminal() -> None:
    name = "tests/models/llama/test_modeling_llama.py::LlamaModelTest::test_" + "long_" * 30
    result = with_limit(
        replace(PEAK, measured=10), GIB, source="tests/models/llama/test_modeling_llama.py:120 @max_peak"
    )
    for mode in ("enforce", "report"):
        for width in (80, 120):
            found = lines([record(name, result, worker="gw3")], mode=mode, verbosity=2, width=width, silent=["gw1"])
            assert max(len(line.text) for line in found) <= width


def test_a_worker_that_fell_silent_is_named_at_any_verbosity() -> None:
    for verbosity in (-1, 0, 1):
        found = lines([record("a::1", PEAK, worker="gw0")], verbosity=verbosity, silent=["gw1"])
        assert "gw1" in text(found)
    assert "gw1" in text(lines([], silent=["gw1"]))


def test_lines_go_to_pytests_writer_with_their_colours() -> None:
    file = StringIO()
    writer = TerminalWriter(file)
    writer.hasmarkup = True
    write(lines([record("a::1", FAILED)])[:1], lambda line, **markup: writer.line(line, **markup))
    assert "\x1b[31m" in file.getvalue()
