"""What is seen of a long test on a terminal while it runs, and that nothing is left of it. Each run has a terminal of
its own, and a screen is made of what it was sent.

No test waits for seconds: the tests inside go on when the line was seen (or, so that a failure ends, never seen).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pyte
import pytest

from pytest_memleak.hooks.progress import LiveLine

pty = pytest.importorskip("pty", reason="needs terminals")

ROWS, COLUMNS = 12, 100

AT_ONCE = """
import pytest_memleak.hooks.progress as progress
progress.AFTER = 0.0
"""

LONG = """
import logging, pathlib, sys, threading
import pytest, torch

MIB = 1024**2

def wait_until_seen():
    drawing = any(thread.name == "memleak-timeline" for thread in threading.enumerate())
    for _ in range(6000):
        if not drawing or pathlib.Path("seen").exists():
            break
        threading.Event().wait(0.01)

def test_before():
    print("captured")

@pytest.mark.max_peak("100MiB")
def test_long():
    held = torch.zeros(25 * MIB, dtype=torch.uint8)
    wait_until_seen()

def test_after(): ...

def test_fails():
    assert False
"""


def resize(terminal: int, rows: int) -> None:
    import fcntl
    import struct
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))


class Terminal:
    """A run of pytest on a terminal, and what is on its screen."""

    def __init__(self, folder: Path, *args: str, rows: int = ROWS) -> None:
        self.sent = b""
        self.screen = pyte.HistoryScreen(COLUMNS, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        resize(slave, rows)
        environment = os.environ | {"TERM": "xterm"}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--gpu-backend=cpu", *args]
        self.process = subprocess.Popen(
            command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)

    def read(self) -> bool:
        """False at the end."""
        try:
            found = os.read(self._master, 4096)
        except OSError:  # so Linux says that the other side is closed
            found = b""
        self.sent += found
        self._stream.feed(found)
        return bool(found)

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        while not seen(self.display):
            assert self.read(), self.sent.decode()
        return self.display

    def rest(self) -> list[str]:
        """All lines that the screen has had, when the run is over."""
        while self.read():
            pass
        self.process.wait()
        rows = [*self.screen.history.top, *(self.screen.buffer[row] for row in range(self.screen.lines))]
        lines = ["".join(row[column].data for column in range(COLUMNS)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return [re.sub(r"=+ (.*) in \d+\.\d+s.*", r"\1", line) for line in lines]

    @property
    def display(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def close(self) -> None:
        os.close(self._master)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Open = Callable[..., Terminal]


@pytest.fixture
def terminal(pytester: pytest.Pytester) -> Iterator[Open]:
    opened: list[Terminal] = []

    def open_one(text: str, *args: str, conftest: str = AT_ONCE, rows: int = ROWS) -> Terminal:
        pytester.makeconftest(conftest)
        pytester.makepyfile(test_it=text)
        pytester.path.joinpath("seen").unlink(missing_ok=True)
        opened.append(Terminal(pytester.path, *args, rows=rows))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def progress_below(display: list[str]) -> bool:
    return any(line.startswith("memleak: test_") and "· peak" in line for line in display)


@pytest.mark.parametrize("rows", [30, 5])
@pytest.mark.parametrize("verbosity", ["--verbosity=0", "-v"])
def test_it_is_seen_in_the_middle_and_gone_at_the_end(
    terminal: Open, pytester: pytest.Pytester, rows: int, verbosity: str
) -> None:
    without = terminal(LONG, verbosity, "--memleak-progress=never", rows=rows).rest()
    one = terminal(LONG, verbosity, rows=rows)
    display = one.until(lambda lines: any("25 MiB now" in line for line in lines))
    row = next(number for number, line in enumerate(display) if line.startswith("memleak: test_long"))
    assert re.fullmatch(
        r"memleak: test_long \d+ s · 25 MiB now · peak 25 MiB of 100 MiB allowed \(25 %\)", display[row]
    )
    current = display[row - 1]
    assert current in ("test_it.py .", "test_it.py::test_long") or current.startswith("test_it.py::test_long ")
    assert one.screen.cursor.y == row - 1
    assert one.screen.cursor.x in (len(current), len(current) + 1)
    pytester.path.joinpath("seen").touch()
    assert one.rest() == without
    assert any("1 failed, 3 passed" in line for line in without)


def test_what_others_write_meanwhile_is_not_disturbed(terminal: Open, pytester: pytest.Pytester) -> None:
    text = """
    import logging, pathlib, threading
    import pytest, torch

    def wait_until_seen(name):
        drawing = any(thread.name == "memleak-timeline" for thread in threading.enumerate())
        for _ in range(6000):
            if not drawing or pathlib.Path(name).exists():
                break
            threading.Event().wait(0.01)

    @pytest.fixture(scope="module")
    def wide():
        pass

    @pytest.mark.max_peak("1GiB")
    def test_talks(capsys, request):
        wait_until_seen("seen")
        logging.getLogger().warning("a live log")
        with capsys.disabled():
            print("straight to the terminal")
        request.getfixturevalue("wide")
        print("captured")
        wait_until_seen("again")
        logging.getLogger().warning("another one")
    """
    pytester.path.joinpath("again").unlink(missing_ok=True)
    without = terminal(text, "--log-cli-level=INFO", "--memleak-progress=never").rest()
    one = terminal(text, "--log-cli-level=INFO")
    one.until(progress_below)
    pytester.path.joinpath("seen").touch()
    one.until(lambda lines: progress_below(lines) and any("straight to" in line for line in lines))
    pytester.path.joinpath("again").touch()
    assert one.rest() == without
    assert "straight to the terminal" in without


MODEL = """
import pathlib, threading
import pytest, torch

@pytest.fixture
def layer():
    return torch.nn.Linear(1024, 1024, bias=False)

@pytest.mark.max_peak("3 * fp32_size", model="fixture:layer")
def test_of_a_fixture(layer):
    for _ in range(6000):
        if pathlib.Path("seen").exists():
            break
        threading.Event().wait(0.01)

@pytest.mark.max_peak("2 * fp32_size")
def test_of_the_body():
    for _ in range(6000):
        if pathlib.Path("again").exists():
            break
        threading.Event().wait(0.01)
    torch.nn.Linear(1024, 1024, bias=False)
"""


def test_a_limit_is_shown_once_it_has_a_value(terminal: Open, pytester: pytest.Pytester) -> None:
    one = terminal(MODEL)
    one.until(lambda lines: any("test_of_a_fixture" in line and "of 12 MiB allowed (33 %)" in line for line in lines))
    pytester.path.joinpath("seen").touch()
    found = one.until(lambda lines: any("memleak: test_of_the_body" in line for line in lines))
    assert "allowed" not in " ".join(found)
    pytester.path.joinpath("again").touch()
    assert "2 passed" in " ".join(one.rest())


def test_an_interrupt_leaves_clean_lines(terminal: Open) -> None:
    one = terminal(LONG)
    one.until(lambda lines: any("25 MiB now" in line for line in lines))
    one.process.send_signal(signal.SIGINT)
    lines = one.rest()
    assert not progress_below(lines)
    assert any("KeyboardInterrupt" in line for line in lines)
    assert "test_it.py ." in lines, "\n".join(lines)


@pytest.mark.parametrize(
    ("args", "environment"),
    [
        (("-q",), {}),
        (("-s",), {}),
        (("--capture=tee-sys",), {}),
        (("-n", "1"), {}),
        (("--memleak-progress=never",), {}),
        ((), {"CI": "true"}),
        ((), {"BUILD_NUMBER": "7"}),
        ((), {"MEMLEAK_PROGRESS": "never"}),
    ],
)
def test_nothing_is_written_where_nobody_could_read_it(
    terminal: Open, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    # It would not end before it was seen, if there was a thread to draw it.
    one = terminal(LONG, *args)
    assert "1 failed, 3 passed" in " ".join(one.rest())
    assert b"memleak: test_" not in one.sent


def test_without_a_terminal_there_is_nothing(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(AT_ONCE)
    pytester.makepyfile(test_it=LONG)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--gpu-backend=cpu")
    result.assert_outcomes(passed=3, failed=1)
    assert "memleak: test_" not in result.stdout.str()


def test_a_test_that_is_soon_over_is_not_shown(terminal: Open) -> None:
    conftest = """
    import threading
    import pytest_memleak.hooks.progress as progress

    progress.AFTER = 1e9
    could_draw = threading.Semaphore(0)
    original = progress.TestProgress.__call__

    def counted(self, second, curves):
        original(self, second, curves)
        could_draw.release()

    progress.TestProgress.__call__ = counted
    """
    text = """
    import pytest
    from conftest import could_draw

    @pytest.mark.max_peak("1GiB")
    def test_short():
        for _ in range(2):
            assert could_draw.acquire(timeout=60)
    """
    one = terminal(text, conftest=conftest)
    assert "1 passed" in " ".join(one.rest())
    assert b"memleak: test_" not in one.sent


class Writer:
    """pytest's, on a terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self.width_of_current_line = 0


@pytest.fixture
def line_of_its_own() -> Iterator[tuple[LiveLine, Writer, SimpleNamespace, Callable[[], str]]]:
    master, slave = pty.openpty()
    resize(slave, 10)
    capture = SimpleNamespace(
        suspend_global_capture=lambda in_=False: None,
        stop_global_capturing=lambda: None,
        resume_global_capture=lambda: None,
    )
    with os.fdopen(slave, "w") as file:
        writer = Writer(file)
        live = LiveLine(writer, capture)

        def sent() -> str:
            os.write(slave, b"|")  # something to read there always is
            found = b""
            while not found.endswith(b"|"):
                found += os.read(master, 4096)
            return found[:-1].decode()

        yield live, writer, capture, sent
        live.close()
        live.close()
    os.close(master)


Line = tuple[LiveLine, Writer, SimpleNamespace, Callable[[], str]]


def test_it_is_drawn_while_pytest_captures_and_a_test_runs(line_of_its_own: Line) -> None:
    live, _, capture, sent = line_of_its_own
    live.show()
    live.draw(lambda columns: "too early")
    assert sent() == ""
    capture.resume_global_capture()
    live.draw(lambda columns: f"{columns} columns")
    assert "99 columns" in sent()
    live.hide()  # a wider fixture is set up
    assert sent() == "\r\n\r\x1b[K\x1b[A\x1b[1G"
    live.draw(lambda columns: "between")
    assert sent() == ""
    live.show()
    live.draw(lambda columns: "again")
    assert "again" in sent()
    capture.suspend_global_capture(in_=True)
    assert sent() == "\r\n\r\x1b[K\x1b[A\x1b[1G"
    capture.suspend_global_capture()
    live.draw(lambda columns: "while others write")
    assert sent() == ""


def test_the_cursor_goes_back_to_where_it_was_or_nothing_is_drawn(line_of_its_own: Line) -> None:
    live, writer, capture, sent = line_of_its_own
    live.show()
    capture.resume_global_capture()
    for width, column in ((7, "\x1b[8G"), (103, "\x1b[4G")):
        writer.width_of_current_line = width
        live.draw(lambda columns: "drawn")
        assert sent().endswith(column)
    writer.width_of_current_line = 200  # the next letter may be meant for this row or for the next one
    live.draw(lambda columns: "drawn")
    assert sent() == ""


def test_a_bad_word_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--memleak-progress=often")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--memleak-progress on the command line: 'often' is not one of auto, never"])
