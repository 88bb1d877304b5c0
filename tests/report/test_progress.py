"""The line of a test that runs: its words, and what a terminal makes of how it is drawn."""

from __future__ import annotations

import pyte
import pytest

from pytest_memleak.report.progress import Progress, drawn, erased, line

GIB = 1024**3
LOAD = Progress("test_load", 12.9, now=1_288_490_189, peak=2_254_857_830, limit=4 * GIB)


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (LOAD, "memleak: test_load 12 s · 1.200 GiB now · peak 2.100 GiB of 4 GiB allowed (52 %)"),
        (Progress("test_load", 2, GIB, 2 * GIB), "memleak: test_load 2 s · 1 GiB now · peak 2 GiB"),
        (
            Progress("test_load", 61, GIB, 2 * GIB, predicted=True),
            "memleak: test_load 1 min 01 s · 1 GiB now · peak 2 GiB (predicted)",
        ),
        (
            Progress("test_load", 3720, GIB, 6 * GIB, limit=4 * GIB, device="cuda:1", predicted=True),
            "memleak: test_load 1 h 02 min · 1 GiB now on cuda:1 · peak 6 GiB of 4 GiB allowed (150 %, predicted)",
        ),
        (
            Progress("test_load", 5, GIB, GIB, limit=4 * GIB, host=True),
            "memleak: test_load 5 s · host memory grown by 1 GiB now · peak 1 GiB of 4 GiB allowed (25 %)",
        ),
    ],
)
def test_what_it_says(progress: Progress, said: str) -> None:
    assert line(progress, 200) == said


def test_the_name_is_cut_before_the_numbers_and_then_the_rest() -> None:
    long = Progress("test_[" + "x" * 100 + "]", 3, GIB, 2 * GIB, limit=4 * GIB)
    numbers = "3 s · 1 GiB now · peak 2 GiB of 4 GiB allowed (50 %)"
    assert line(long, 80) == "memleak: " + "test_[xxxxxxxxxxx… " + numbers.rjust(len(numbers))
    assert len(line(long, 80)) <= 80
    assert line(long, 30) == "memleak: test_[xxxxx… 3 s · 1…"


def test_wide_letters_take_two_columns_and_controls_none() -> None:
    found = line(Progress("test_[\x1b[2J漢字漢字漢字漢字]", 3, GIB, GIB), 40)
    assert "\x1b" not in found
    screen = pyte.Screen(40, 2)
    pyte.Stream(screen).feed(found)
    assert screen.cursor.y == 0


def screen_of(text: str, rows: int = 4) -> pyte.Screen:
    screen = pyte.Screen(40, rows)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))  # as the driver of a terminal does
    return screen


@pytest.mark.parametrize("before", ["test_it.py ..", "one\ntwo\nthree\ntest_it.py ..", "one\ntwo\nthree\n"])
def test_it_stands_below_and_the_cursor_where_it_was(before: str) -> None:
    """Also on the last row, where all lines move up."""
    column = len(before.rpartition("\n")[2])
    last = before.rpartition("\n")[2]
    screen = screen_of(before + drawn("memleak: 5 s", column) + drawn("memleak: 6 s", column))
    row = next(number for number, shown in enumerate(screen.display) if shown.strip() == "memleak: 6 s")
    assert (screen.cursor.y, screen.cursor.x) == (row - 1, column)
    assert screen.display[row - 1].rstrip() == last
    assert sum("memleak" in shown for shown in screen.display) == 1
    screen = screen_of(before + drawn("memleak: 5 s", column) + erased(column) + ".\nnext")
    assert [shown.strip() for shown in screen.display if shown.strip()][-2:] == [last + ".", "next"]
    assert not any("memleak" in shown for shown in screen.display)
