from __future__ import annotations

from dataclasses import replace

from pytest_memleak.budget.term import Term
from pytest_memleak.records.record import CheckResult, Limit
from pytest_memleak.report.terminal import failure_text

LIMIT = Limit(
    "0.5 * fp16_size + 58MiB",
    1_160_869_120,
    "tests/test_load.py:12 @max_peak",
    (Term("fp16_size", 2_200_100_864, "1,100,050,432 parameters × 2 B of LlamaForCausalLM"),),
)
PEAK = CheckResult(
    check="max_peak",
    verdict="fail",
    message="max_peak FAILED: peak 2.147 GiB > limit 1.081 GiB (allocated on cuda:0, measured)",
    device="cuda:0",
    kind="allocated",
    how="measured",
    measured=2_305_843_009,
    base=536_870_912,
    limit=LIMIT,
    details=("highest in the set-up of its fixtures: 1 GiB, in the body: 2.147 GiB",),
    advice='find what was alive at the peak and release it earlier; if it is needed, allow it: max_peak("2.3GiB")',
)


def test_a_failure_reads_verdict_sum_limit_terms_details_advice_in_this_order() -> None:
    text = failure_text([PEAK])
    lines = text.splitlines()
    assert lines[0] == PEAK.message
    parts = [
        "base 0.5 GiB + test 1.647 GiB = peak 2.147 GiB",
        'limit "0.5 * fp16_size + 58MiB" = 1,160,869,120 B, from tests/test_load.py:12 @max_peak',
        "fp16_size = 2,200,100,864 B: 1,100,050,432 parameters × 2 B of LlamaForCausalLM",
        "highest in the set-up",
        "what to do: find what was alive",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_failure_fits_a_hundred_columns_except_for_words_that_one_copies() -> None:
    path = "tests/" + "deep/" * 30 + "test_load.py:12"
    result = replace(PEAK, details=("held by the module attribute cache " * 6, f"4 KiB at {path}"))
    lines = failure_text([result]).splitlines()
    assert all(len(line) <= 100 for line in lines if path not in line)
    assert any(path in line for line in lines)


def test_details_of_several_lines_keep_their_lines_and_indents() -> None:
    text = failure_text([replace(PEAK, details=("owners:\n  module `cache`\n  a global",))])
    assert "\n  owners:\n    module `cache`\n    a global\n" in text


def test_what_failed_comes_before_what_was_inconclusive_and_what_passed_is_left_out() -> None:
    unsure = CheckResult("max_leak", "inconclusive", "max_leak INCONCLUSIVE: a child was not measured")
    fine = CheckResult("max_host_peak", "pass", "max_host_peak passed: …")
    text = failure_text([fine, unsure, PEAK])
    assert text.index("max_peak FAILED") < text.index("max_leak INCONCLUSIVE")
    assert "max_host_peak" not in text


def test_what_is_only_reported_is_no_failure() -> None:
    assert failure_text([replace(PEAK, enforced=False)]) == ""


def test_a_leak_has_no_base_to_add() -> None:
    text = failure_text([replace(PEAK, check="max_leak", message="max_leak FAILED: …")])
    assert "base" not in text
