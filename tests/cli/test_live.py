"""What is shown while a matrix runs, on the screen of a terminal and in a log."""

from __future__ import annotations

import io

import pyte
import pytest

from pytest_memleak.cli import trials
from pytest_memleak.cli.trials import Live
from pytest_memleak.releases.cell import Began, Cell, Done

ONE, OTHER = (("lib", "1.0"),), (("lib", "1.1"),)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    display = pyte.Screen(100, 10)
    pyte.Stream(display).feed(text.replace("\n", "\r\n"))
    return [line.rstrip() for line in display.display if line.strip()]


@pytest.fixture(autouse=True)
def hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "columns", lambda: 100)


def test_on_a_terminal_what_runs_stands_below_what_is_done() -> None:
    stream = Terminal()
    with Live(stream, 3) as live:
        live(Began(ONE, "installing"))
        live(Began(OTHER, "installing"))
        assert screen(stream.getvalue()) == ["memleak: [0/3] lib 1.0: installing 0 s · lib 1.1: installing 0 s"]
        live(Done(ONE, (Cell(ONE, "t.py::t", "fail", "max_peak FAILED"),)))
        assert screen(stream.getvalue()) == [
            "[1/3] lib 1.0 t.py::t: fail: max_peak FAILED",
            "memleak: [1/3] lib 1.1: installing 0 s",
        ]
        live(Began(OTHER, "a test with a name that is much longer than any line of a terminal, " * 3))
        assert len(screen(stream.getvalue())) == 2, "cut, or it would leave lines behind"
    assert screen(stream.getvalue()) == ["[1/3] lib 1.0 t.py::t: fail: max_peak FAILED"]


def test_nobody_reads_any_more_and_it_goes_on() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with Live(Gone(), 1) as live:
        live(Began(ONE, "installing"))
        live(Done(ONE, (Cell(ONE, "t.py::t", "pass"),)))


def test_in_a_log_there_is_a_line_for_each_cell_and_nothing_else() -> None:
    stream = io.StringIO()
    with Live(stream, None) as live:
        live(Began(ONE, "installing"))
        live(Done(ONE, (Cell(ONE, "t.py::t", "pass", case="c", expected="pass", stored="2026-01-01 10:00"),)))
    assert stream.getvalue() == "[1] c: lib 1.0 t.py::t: pass (as expected) [from an earlier call]\n"
