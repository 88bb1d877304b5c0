"""What a signal's handler raises reaches the program, also where native code had called us."""

from __future__ import annotations

import ctypes
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import pytest

from pytest_memleak.events import callbacks
from pytest_memleak.events.callbacks import called_by_native_code

ALLOCATING = """
import signal, time
import pytest, torch

class Tick(Exception):
    pass

told = []

def tick(number, frame):
    told.append(number)
    raise Tick

@pytest.fixture(scope="session", autouse=True)
def ticking():
    signal.signal(signal.SIGALRM, tick)

@pytest.mark.max_peak("1GiB")
def test_allocates({card}):
    heard = 0
    for _ in range(100):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002)
            until = time.monotonic() + 1
            while time.monotonic() < until:
                torch.empty(1 << 21, device={device})
        except Tick:
            heard += 1
    assert heard == len(told) == 100
"""


class Ticked(Exception):
    pass


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """The numbers of the signals whose handler has run; it raises."""
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        numbers.append(number)
        raise Ticked

    before = signal.signal(signal.SIGUSR1, handle)
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def interrupted(done: list[str]) -> None:
    """A callback in which a signal comes."""

    @called_by_native_code
    def callback() -> None:
        signal.raise_signal(signal.SIGUSR1)
        done.append("all of it")

    ctypes.CFUNCTYPE(None)(callback)()


def test_a_callback_ends_before_the_handler_runs(handled: list[int]) -> None:
    done: list[str] = []
    with callbacks.whole(), pytest.raises(Ticked):
        interrupted(done)
        assert done == ["all of it"]
        assert not handled
        threading.Event().wait(60)  # a wait that only a real signal ends
    assert handled == [signal.SIGUSR1]


def test_elsewhere_it_runs_at_once(handled: list[int]) -> None:
    with callbacks.whole():
        with pytest.raises(Ticked):
            signal.raise_signal(signal.SIGUSR1)
        with callbacks.whole(), pytest.raises(Ticked):  # once more around it
            signal.raise_signal(signal.SIGUSR1)
    assert handled == 2 * [signal.SIGUSR1]


def test_what_was_there_is_put_back_and_what_the_program_sets_stays(handled: list[int]) -> None:
    def handler(number: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGUSR1, handler)
    with callbacks.whole():
        assert signal.getsignal(signal.SIGUSR1) is not handler
    assert signal.getsignal(signal.SIGUSR1) is handler
    with callbacks.whole():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_one_whose_handler_has_gone_is_dropped(handled: list[int]) -> None:
    """As it is, it would end the process."""
    with callbacks.whole():
        interrupted([])
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        time.sleep(0.1)  # longer than it takes to be sent again
    assert not handled


def test_another_thread_leaves_handlers_alone(handled: list[int]) -> None:
    found: list[object] = []

    def look() -> None:
        with callbacks.whole():
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGUSR1)]


@pytest.mark.parametrize("backend", ["cpu", "simulated"])
def test_no_alarm_is_lost_while_memory_is_allocated(pytester: pytest.Pytester, backend: str) -> None:
    source = ALLOCATING.replace("{card}", "card" if backend == "simulated" else "")
    source = source.replace("{device}", "card.device" if backend == "simulated" else "'cpu'")
    pytester.makepyfile(source)
    result = pytester.runpytest_subprocess(
        f"--gpu-backend={backend}", "-W", "error::pytest.PytestUnraisableExceptionWarning", "--memleak-explain=always"
    )
    result.assert_outcomes(passed=1)
