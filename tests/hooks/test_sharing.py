"""Workers of pytest-xdist and their cards: real runs with real workers, on cards that are a file."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from pytest_memleak.records.baselines.file import HEAD
from pytest_memleak.workers.need import Bytes
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import visible
from tests.workers import fake_cards
from tests.workers.fake_cards import GIB, FakeCards

pytest.importorskip("xdist")

_PLUGIN = """
import os
from pathlib import Path
from fake_cards import GIB, FakeCards
from pytest_memleak.workers import driver, own, reserving

CARDS = FakeCards(Path(__file__).with_name("cards.json"))
driver.find = lambda: CARDS
reserving.POLL = 0.01
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
KEY = f"GPU-{VISIBLE}f00"

def pytest_configure(config):
    config.addinivalue_line("markers", "profiled_vram_gib(gib): what the project's own profile says")
"""

_TESTS = """
import json, os, pathlib, pytest, sys, time
from fake_plugin import CARDS, GIB, KEY, VISIBLE

HERE = pathlib.Path(__file__).parent
reserves = pytest.mark.profiled_vram_gib  # for these no worker imports torch, which is what takes time

def wait_for(condition):
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()

def claims():
    # Of the one worker that there is, its context with them.
    (file,) = HERE.glob("temporary/*/*.holder")
    return [hold["claim"] for hold in json.loads(file.read_text())["cards"].values()]
"""

_LEAN = ("-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:rerunfailures")

Start = Callable[..., pytest.RunResult]


@pytest.fixture
def cards(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> FakeCards:
    """Two of 64 GiB, and a folder of the project's own for what runs tell each other."""
    folder = pytester.mkdir("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_AUTO_NUM_WORKERS", raising=False)
    shutil.copy(str(fake_cards.__file__), pytester.path)
    pytester.makepyfile(fake_plugin=_PLUGIN)
    return FakeCards.make(pytester.path / "cards.json", 64 * GIB, 64 * GIB)


@pytest.fixture
def start(pytester: pytest.Pytester, cards: FakeCards) -> Start:
    def run(text: str, *args: str) -> pytest.RunResult:
        pytester.makepyfile(test_it=_TESTS + text)
        return pytester.runpytest_subprocess("-p", "fake_plugin", *_LEAN, *args)

    return run


def told_each_other(pytester: pytest.Pytester) -> bool:
    return any((pytester.path / "temporary").glob("pytest-memleak-cards-*"))


_TELL = """
@pytest.mark.parametrize("number", range(12))
def test_tell(number, worker_id):
    (HERE / f"{worker_id}.txt").write_text(repr((VISIBLE, "torch" in sys.modules)))
    wait_for(lambda: len(list(HERE.glob("gw*.txt"))) == 3)
"""


def told(pytester: pytest.Pytester) -> dict[str, str]:
    return {file.stem: file.read_text() for file in pytester.path.glob("*.txt")}


def test_workers_have_the_callers_cards_in_turn(
    pytester: pytest.Pytester, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-0")
    result = start(_TELL, "-n", "3")
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
    start(_TELL, "-n", "3").assert_outcomes(passed=12)
    assert [text[:4] for _, text in sorted(told(pytester).items())] == ["('0'", "('1'", "('0'"]


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "MIG-1,MIG-1/2"])
def test_what_is_no_whole_card_is_passed_on(
    pytester: pytest.Pytester, start: Start, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    result = start(_TELL + "\n@reserves(500)\ndef test_more(): ...\n", "-n", "3")
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


def test_tests_that_fit_run_at_once(start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    result = start(
        """
@reserves(15)
@pytest.mark.parametrize("number", range(4))
def test_together(number):
    CARDS.allocate(KEY, 15 * GIB)
    (HERE / f"{number}.txt").touch()
    wait_for(lambda: len(list(HERE.glob("*.txt"))) == 4)
    CARDS.allocate(KEY, -15 * GIB)
""",
        "-n",
        "4",
    )
    result.assert_outcomes(passed=4)
    assert cards.most_at_once("GPU-0f00") == 4


def test_tests_that_do_not_fit_wait(start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    result = start(
        """
@reserves(30)
@pytest.mark.parametrize("number", range(8))
def test_in_turn(number):
    CARDS.allocate(KEY, 30 * GIB)  # out of memory, if a third one runs
    time.sleep(0.05)
    CARDS.allocate(KEY, -30 * GIB)
""",
        "-n",
        "4",
    )
    result.assert_outcomes(passed=8)
    assert cards.most_at_once("GPU-0f00") <= 2


def test_more_than_the_card_has_is_an_error_and_no_expected_failure(start: Start) -> None:
    result = start(
        """
@pytest.mark.xfail
@pytest.mark.max_peak("80GiB")
def test_large(): ...

@pytest.mark.xfail
@reserves(90)
def test_profiled(): ...

@pytest.mark.skip
@pytest.mark.max_peak("80GiB")
def test_skipped(): ...

def test_says_nothing(): ...
""",
        "-n",
        "2",
    )
    result.assert_outcomes(errors=2, skipped=1, passed=1)
    text = result.stdout.str()
    assert re.search(r"test_it.py:\d+ @max_peak: the test wants 80 GiB, and card [01] \(Fake H200\) has 64 GiB", text)
    assert "profiled_vram_gib(90): the test wants 90 GiB" in text


def test_who_waits_in_vain_is_an_error_that_names_who_has_the_card(
    pytester: pytest.Pytester, start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run of the same user has some of it, and a process that is no test has more."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    cards.allocate("GPU-0f00", 20 * GIB, pid=1)
    other_run = Reservations(cards, [], "gw5")
    other_run.take("test_elsewhere", Bytes(40 * GIB, ""), visible("0", cards.devices()), 0.0)
    try:
        result = start(
            "@pytest.mark.max_peak('10G')\ndef test_it(): ...\n",
            "-n",
            "1",
            "--memleak-card-timeout=0.2",
            "--memleak-json=out.json",
        )
    finally:
        other_run.close()
    result.assert_outcomes(errors=1)
    message = (
        f"it waited 0 s for 10 GiB (test_it.py:* @max_peak); card 0 (Fake H200): gw5 (pid {os.getpid()}) has 40.50 GiB "
        "for test_elsewhere, processes that are not of these test runs have 20 GiB: * (pid 1) 20 GiB. Raise "
        "--memleak-card-timeout if that is not too long, or use fewer workers"
    )
    result.stdout.fnmatch_lines(f"pytest-memleak: {message}")
    (test,) = json.loads((pytester.path / "out.json").read_text())["tests"]
    assert [one["verdict"] for one in test["results"]] == ["inconclusive"]


def test_who_waited_says_so(
    pytester: pytest.Pytester, start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    result = start(
        """
@pytest.mark.max_peak("50GiB")
@pytest.mark.parametrize("number", range(2))
def test_in_turn(number):
    first, texts = HERE / "first.txt", lambda: [file.read_text() for file in HERE.glob("temporary/*/*.holder")]
    if not first.exists():
        first.touch()
        wait_for(lambda: any('"want": {' in text for text in texts()))
""",
        "-n",
        "2",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(passed=2)
    tests: list[dict[str, Any]] = json.loads((pytester.path / "out.json").read_text())["tests"]
    notes = [note for test in tests for note in test["notes"]]
    assert len(notes) == 1
    assert re.match(
        r"waited \d+\.\d s; then: card 0 \(Fake H200\): gw[01] \(pid \d+\) has 50.50 GiB for test_it.py::test_in_turn",
        notes[0],
    )


def test_a_marker_of_others_is_a_reservation_and_needs_no_torch(start: Start) -> None:
    result = start(
        """
@reserves(30)
def test_small():
    assert "torch" not in sys.modules

@reserves("30")
def test_text(): ...

@pytest.mark.xfail
@reserves(90)
def test_large(): ...

@reserves(20)
def test_takes():
    assert claims() == [20 * GIB + (512 << 20)]

def test_has_given_back():
    assert claims() == [0]
""",
        "-n",
        "1",
        "-W",
        "error",
        "--strict-markers",
    )
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines("*test_it.py::test_text: @pytest.mark.profiled_vram_gib('30') is not a number of GiB*")


def test_a_recorded_peak_is_reserved_also_of_a_test_in_a_group(pytester: pytest.Pytester, start: Start) -> None:
    """pytest-xdist may name the group behind the test's id, and the baseline never does."""
    entries = ("test_it.py::test_grouped", 20), ("test_it.py::TestIt::test_alone[@g]", 30)
    lines = [f"{test} real NVIDIA-H200 torch-2.13 peak(cuda:0)={count * GIB}" for test, count in entries]
    (pytester.path / "baseline.txt").write_text("\n".join([*HEAD, *lines, ""]))
    result = start(
        """
@pytest.mark.max_leak
@pytest.mark.xdist_group("g")
def test_grouped():
    assert claims() == [20 * GIB + (512 << 20)]

class TestIt:
    @pytest.mark.max_leak
    @pytest.mark.parametrize("name", ["@g"])
    def test_alone(self, name):
        assert claims() == [30 * GIB + (512 << 20)]
""",
        "-n",
        "1",
        "--dist=loadgroup",
        "--memleak-baseline=baseline.txt",
    )
    result.assert_outcomes(passed=2)


def test_who_is_interrupted_once_it_has_its_part_gives_it_back(pytester: pytest.Pytester, start: Start) -> None:
    """As by pytest-timeout, whose time may end at any moment."""
    pytester.makeconftest(
        """
import pytest
from pytest_memleak.workers.reserving import Reservations
take = Reservations.take

def struck(*args, **options):
    take(*args, **options)
    pytest.fail("Timeout")
Reservations.take = struck
"""
    )
    result = start("@reserves(20)\ndef test_struck(): ...\n\ndef test_after(): assert claims() == [0]\n", "-n", "1")
    result.assert_outcomes(passed=1, errors=1)


def test_a_killed_workers_part_is_free_again(start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    result = start(
        """
@reserves(50)
@pytest.mark.parametrize("number", range(6))
def test_in_turn(number):
    assert VISIBLE == "1"  # of the worker that comes instead, too
    CARDS.allocate(KEY, 50 * GIB)
    if number == 2:
        os.kill(os.getpid(), 9)
    CARDS.allocate(KEY, -50 * GIB)
""",
        "-n",
        "2",
    )
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines("*worker 'gw*' crashed while running 'test_it.py::test_in_turn*'")


def test_who_says_nothing_has_a_share_of_the_card(
    start: Start, cards: FakeCards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    text = """
@pytest.mark.max_leak
@pytest.mark.parametrize("number", range(2))
def test_share(number):
    CARDS.allocate(KEY, 30 * GIB)
    (HERE / f"{number}.txt").touch()
    wait_for(lambda: len(list(HERE.glob("*.txt"))) == 2)
    CARDS.allocate(KEY, -30 * GIB)
"""
    start(text, "-n", "2").assert_outcomes(passed=2)
    assert cards.most_at_once("GPU-0f00") == 2


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


def test_ranks_have_the_callers_cards_and_not_the_workers_alone(
    pytester: pytest.Pytester, start: Start, cards: FakeCards
) -> None:
    """Without cards no rank can be started: what one test would start them with is looked at instead."""
    pytester.makeconftest(
        """
import torch
torch.cuda.device_count = lambda: 1  # a worker sees its own alone
from pathlib import Path
from pytest_memleak.hooks.ranks import RankedTests

def run(self, item, ranks, plan):
    with self._reserved(item, ranks, plan) as cards:
        busy = Path(__file__).with_name("busy")
        busy.mkdir()
        busy.rmdir()
        Path(__file__).with_name(f"{item.name}.txt").write_text(",".join(cards))
    return {}
RankedTests._run = run
"""
    )
    result = start(
        "@pytest.mark.ranks(2)\n@pytest.mark.parametrize('number', range(4))\ndef test_two(number): ...\n"
        "@pytest.mark.ranks(3)\ndef test_three(): ...\n",
        "-n",
        "2",
        "--gpu-backend=real",
    )
    result.assert_outcomes(passed=4, errors=1)
    result.stdout.fnmatch_lines("*3 ranks want a GPU each, and there are 2*")
    assert set(told(pytester).values()) == {"0,1"}
