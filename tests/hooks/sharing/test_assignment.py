"""Which card a worker gets, and how many workers there are."""

from __future__ import annotations

import pytest

from tests.hooks.sharing.played import TELL, Start, told, told_each_other
from tests.workers.fake_cards import FakeCards

pytest.importorskip("xdist")


def test_workers_have_the_callers_cards_in_turn(
    pytester: pytest.Pytester, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-0")
    result = start(TELL, "-n", "3")
    result.assert_outcomes(passed=12)
    assert told(pytester) == {
        "gw0": "('1', False)",
        "gw1": "('GPU-0', False)",
        "gw2": "('1', False)",
    }
    result.stdout.fnmatch_lines(
        "memleak: cards of the workers, by CUDA_VISIBLE_DEVICES: gw0, gw2: 1 (Fake H200, 64 GiB); "
        "gw1: GPU-0 (Fake H200, 64 GiB)"
    )
    assert not told_each_other(pytester)  # none of the tests says anything of memory


def test_without_a_word_of_the_caller_they_have_all(pytester: pytest.Pytester, start: Start) -> None:
    start(TELL, "-n", "3").assert_outcomes(passed=12)
    assert [text[:4] for _, text in sorted(told(pytester).items())] == ["('0'", "('1'", "('0'"]


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "MIG-1,MIG-1/2"])
def test_what_is_no_whole_card_is_passed_on(
    pytester: pytest.Pytester, start: Start, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    result = start(TELL + "\n@reserves(500)\ndef test_more(): ...\n", "-n", "3")
    result.assert_outcomes(passed=13)
    names = value.split(",") if value.startswith("MIG") else [value] * 2
    assert told(pytester) == {f"gw{number}": f"({names[number % 2]!r}, False)" for number in range(3)}
    assert not told_each_other(pytester)


@pytest.mark.parametrize(
    "args", [("-n", "0"), (), ("-n", "2", "--gpu-backend=cpu"), ("-n", "2", "--memleak-share=off")]
)
def test_otherwise_nothing_changes(pytester: pytest.Pytester, start: Start, args: tuple[str, ...]) -> None:
    result = start("@pytest.mark.max_peak('500G')\ndef test_it(): assert VISIBLE is None\n", *args)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("memleak: cards*")
    assert not told_each_other(pytester)


def test_who_chose_a_workers_card_himself_had_a_reason(pytester: pytest.Pytester, start: Start) -> None:
    result = start("def test_it(): assert VISIBLE == '7'\n", "--dist=load", "--tx=popen//env:CUDA_VISIBLE_DEVICES=7")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("memleak: cards*")


_NOT_THERE = (
    "CUDA_VISIBLE_DEVICES='0,2': '2': no card has that name; there are 0, 1. Correct it, or leave the cards alone "
    "(--memleak-share=off)"
)


def test_where_a_run_speaks_of_memory_a_card_that_is_not_there_is_a_usage_error(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    result = start("def test_it(): ...", "-n", "2", "--memleak-max-leak=1M")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: {_NOT_THERE}")


def test_any_other_run_goes_on_as_if_there_were_no_plugin(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    result = start("def test_it(): assert VISIBLE == '0,2'", "-n", "1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(f"memleak: the workers are given no cards. {_NOT_THERE}")


@pytest.mark.parametrize("value", ["half", "0", "-1"])
def test_a_share_that_is_none_is_a_usage_error(start: Start, value: str) -> None:
    result = start("def test_it(): ...", f"--memleak-share={value}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(f"ERROR: --memleak-share on the command line: '{value}' is not one of equal, whole*")


@pytest.mark.parametrize(("option", "workers"), [("--memleak-share=60G", 2), ("--memleak-share=equal", 3)])
def test_auto_counts_what_fits(pytester: pytest.Pytester, start: Start, option: str, workers: int) -> None:
    pytester.makepyfile(
        counts="import pytest\n@pytest.hookimpl(tryfirst=True)\ndef pytest_xdist_auto_num_workers(): return 3\n"
    )
    result = start("def test_it(): ...", "-p", "counts", "-n", "auto", option)
    result.assert_outcomes(passed=1)
    told = "memleak: -n auto: 2 workers instead of 3: each may take 60 GiB and a context of the 2 cards"
    assert (told in result.outlines) == (workers == 2)
    result.stdout.fnmatch_lines(f"created: {workers}/{workers} workers")


def test_a_card_that_is_lost_meanwhile_is_an_error_where_workers_are_counted(start: Start, cards: FakeCards) -> None:
    cards.lose("GPU-1f00")
    result = start("def test_it(): ...", "-n", "auto", "--memleak-share=16G")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines("ERROR: -n auto: card GPU-1f00 is lost")


def test_a_card_of_which_nothing_is_told_is_left_out(start: Start, cards: FakeCards) -> None:
    cards.change("GPU-0f00", trouble="error 3", total=0)
    result = start("def test_it(): assert VISIBLE == 'GPU-1f00'", "-n", "2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "memleak: card GPU-0f00 is left out: the driver tells nothing of it (error 3)",
            "memleak: cards of the workers, by CUDA_VISIBLE_DEVICES: gw0, gw1: GPU-1f00 (Fake H200, 64 GiB)",
        ]
    )


def test_of_a_card_in_slices_nothing_is_reserved(pytester: pytest.Pytester, start: Start, cards: FakeCards) -> None:
    cards.change("GPU-0f00", sliced=True)
    result = start("@reserves(500)\ndef test_it(): assert VISIBLE == '0'", "-n", "1")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines("memleak: cards of the workers*gw0: 0 (not shared by its memory)")
    assert not told_each_other(pytester)


def test_the_callers_own_count_counts(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "3")
    result = start("def test_it(): ...", "-n", "auto", "--memleak-share=60G")
    result.stdout.fnmatch_lines("*cards of the workers*gw0, gw2: 0*gw1: 1*")
