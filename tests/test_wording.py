from __future__ import annotations

import pytest

from pytest_memleak.budget.sizes import parse_size
from pytest_memleak.records.record import CardInfo
from pytest_memleak.wording import (
    card_line,
    compared,
    host_peak_message,
    leak_message,
    peak_message,
    readable_above,
    shortened,
    sum_line,
)

GIB = 1024**3
MIB = 1024**2


def test_a_failed_peak_says_verdict_both_numbers_place_and_how() -> None:
    message = peak_message(
        "fail", measured=2_305_843_009, limit=1_160_773_632, kind="allocated", device="cuda:0", how="measured"
    )
    assert message == "max_peak FAILED: peak 2.147 GiB > limit 1.081 GiB (allocated on cuda:0, measured)"


def test_a_passed_peak_uses_the_other_sign() -> None:
    message = peak_message("pass", measured=GIB, limit=2 * GIB, kind="reserved", device="cpu", how="measured")
    assert message == "max_peak passed: peak 1 GiB ≤ limit 2 GiB (reserved on cpu, measured)"


def test_a_peak_of_exactly_the_limit_is_not_over_it() -> None:
    message = peak_message("pass", measured=GIB, limit=GIB, kind="allocated", device="cpu", how="measured")
    assert "peak 1 GiB ≤ limit 1 GiB" in message


def test_an_inconclusive_check_says_why_before_the_numbers() -> None:
    message = host_peak_message(
        "inconclusive",
        measured=MIB,
        limit=GIB,
        kind="committed",
        how="sampled every 1 ms",
        why="a child was not measured",
    )
    assert message.startswith("max_host_peak INCONCLUSIVE: a child was not measured; read: ")
    assert "1 MiB ≤ limit 1 GiB (committed host memory, sampled every 1 ms)" in message


def test_a_test_that_was_not_judged_is_not_said_to_have_passed() -> None:
    message = peak_message(
        "not judged",
        measured=MIB,
        limit=GIB,
        kind="allocated",
        device="cpu",
        how="measured",
        why="the test failed first",
    )
    assert message.startswith("max_peak not judged: the test failed first; read: peak 1 MiB")
    assert "passed" not in message


def test_a_leak_per_run_says_so() -> None:
    message = leak_message("fail", measured=4096, limit=0, kind="allocated", device="cpu", how="measured", per_run=True)
    assert message == "max_leak FAILED: growth per run 4 KiB > limit 0 B (allocated on cpu, measured)"


def test_without_a_limit_only_the_reading_is_told() -> None:
    message = leak_message("pass", measured=512, limit=None, kind="allocated", device="cuda:1", how="measured")
    assert message == "max_leak: still held after the test 512 B, no limit (allocated on cuda:1, measured)"


def test_numbers_that_would_look_alike_are_shown_in_bytes() -> None:
    assert compared(GIB * 3 // 2 + 1, GIB * 3 // 2) == ("1,610,612,737 B", "1,610,612,736 B")
    assert compared(GIB, GIB) == ("1 GiB", "1 GiB")


@pytest.mark.parametrize(
    ("base", "peak"),
    [
        (GIB // 2, 2_305_843_009),
        (7 * GIB, 23 * GIB + 123_456),
        (int(1.0004 * GIB), int(2.0008 * GIB)),
        (12, 700),
        (0, 5 * GIB // 3),
        (333 * MIB, GIB),
    ],
)
def test_base_and_test_add_up_to_the_peak_as_shown(base: int, peak: int) -> None:
    words = sum_line("max_peak", peak, base).replace("+ ", "").replace("= ", "").split()
    assert words[::3] == ["base", "test", "peak"]
    shown_base, shown_test, shown_peak = map(float, words[1::3])
    assert len(set(words[2::3])) == 1
    assert shown_base + shown_test == pytest.approx(shown_peak, abs=1e-9)


def test_a_base_too_small_for_the_peaks_unit_keeps_its_own() -> None:
    assert sum_line("max_peak", 2 * GIB, 4096) == "base 4 KiB + test 2.000 GiB = peak 2 GiB"


def test_a_host_peak_is_growth_on_top_of_its_base() -> None:
    assert sum_line("max_host_peak", GIB, GIB) == "base 1 GiB + test 1 GiB = peak 2 GiB"


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (1, "1B"),
        (730, "730B"),
        (731, "740B"),
        (1000, "1KiB"),
        (1025, "1.1KiB"),
        (int(1.23 * GIB), "1.3GiB"),
        (339 * MIB, "340MiB"),
        (996 * MIB, "1000MiB"),
        (1023 * MIB, "1GiB"),
        (40 * GIB + 1, "41GiB"),
    ],
)
def test_a_limit_to_write_is_round_and_never_too_low(count: int, written: str) -> None:
    assert readable_above(count) == written
    assert count <= parse_size(written) <= count * 1.11 + 1


def test_the_middle_of_a_long_name_goes_and_the_test_stays() -> None:
    name = "tests/models/llama/test_modeling_llama.py::LlamaModelTest::test_load[bf16]"
    short = shortened(name, 40)
    assert len(short) == 40
    assert short.startswith("tests/models")
    assert short.endswith("::test_load[bf16]")
    assert shortened(name, 200) == name
    assert shortened(name, 1) == "…"


def test_the_cpu_as_a_card_says_what_it_stands_in_for() -> None:
    card = CardInfo("cpu", "CPU", ("cpu",), 64 * GIB, cap=16 * GIB, enforcement="judged at the end on CPU tensors")
    line = card_line(card)
    assert line.startswith("the CPU stands in for a 16 GiB card")
    assert "judged at the end" in line


def test_a_real_card_says_name_devices_size_cap_and_how_it_holds() -> None:
    card = CardInfo(
        "real", "H200", ("cuda:0", "cuda:1"), 139 * GIB, cap=16 * GIB, enforcement="enforced on reserved memory"
    )
    assert card_line(card) == "H200 (cuda:0, cuda:1), 139 GiB, capped at 16 GiB (enforced on reserved memory)"
    assert card_line(CardInfo("cpu", "CPU", ("cpu",), 64 * GIB)) == "CPU, 64 GiB, no cap"
