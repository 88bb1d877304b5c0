"""What tests reserve of a card, and who waits for whom."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from pytest_memleak.records.baselines.file import HEAD
from pytest_memleak.workers.need import Bytes
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import visible
from tests.hooks.sharing.played import Start, told
from tests.workers.fake_cards import GIB, FakeCards

pytest.importorskip("xdist")


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
