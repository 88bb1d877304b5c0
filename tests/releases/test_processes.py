"""Programs that are waited for until they end, and no longer; nothing of their group outlives them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_memleak.releases import processes
from pytest_memleak.releases.processes import Ended, Processes, Stopped

CHILD = """
import pathlib, subprocess, sys, threading
child = subprocess.Popen(['sleep', '300'], start_new_session={detached})
pathlib.Path('child').write_text(str(child.pid))
print('said', flush=True)
{then}
"""


class Here:
    """Runs one program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes = Processes()

    def python(self, source: str, timeout: float | None = None) -> Ended:
        return self.processes.run([sys.executable, "-c", source], cwd=self.folder, env=os.environ, timeout=timeout)

    @property
    def child(self) -> int:
        return int((self.folder / "child").read_text())


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path)
    yield made
    if (tmp_path / "child").exists() and runs(made.child):
        os.kill(made.child, signal.SIGKILL)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_until(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    end = time.monotonic() + 60
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not runs(pid)


def test_output_and_status_of_both_streams(here: Here) -> None:
    source = "import os, sys; os.write(2, b'\\xff x'); sys.stdout.write('y' * 3_000_000 + 'z'); sys.exit(3)"
    ended = here.python(source)
    assert (ended.status, ended.timed_out) == (3, False)
    assert ended.output == "\N{REPLACEMENT CHARACTER} x" + "y" * 3_000_000 + "z"


def test_a_program_that_has_ended_is_not_waited_for_because_a_child_keeps_its_output_open(here: Here) -> None:
    ended = here.python(CHILD.format(detached=True, then=""), timeout=60)
    assert ended == Ended(0, "said\n")
    assert runs(here.child), "it was waited for"


def test_what_a_program_leaves_behind_in_its_group_is_killed(here: Here) -> None:
    assert here.python(CHILD.format(detached=False, then="")) == Ended(0, "said\n")
    assert gone(here.child)


def test_a_time_limit_holds_while_a_child_keeps_the_output_open(here: Here) -> None:
    ended = here.python(CHILD.format(detached=True, then="threading.Event().wait()"), timeout=2)
    assert ended == Ended(-signal.SIGTERM, "said\n", timed_out=True)
    assert runs(here.child), "it was waited for"


def test_a_time_limit_holds_for_a_program_that_has_closed_its_output(here: Here) -> None:
    ended = here.python("import os, threading; os.close(1); os.close(2); threading.Event().wait()", timeout=1)
    assert ended == Ended(-signal.SIGTERM, "", timed_out=True)


def test_one_that_does_not_want_to_end_is_killed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_GRACE", 0.5)
    stubborn = "import signal, threading; signal.signal(signal.SIGTERM, lambda *_: None)\nwhile True: signal.pause()"
    assert here.python(stubborn, timeout=2).status == -signal.SIGKILL


@pytest.mark.parametrize("in_a_hurry", [False, True])
def test_stopped_they_end_and_nothing_is_started_any_more(
    here: Here, monkeypatch: pytest.MonkeyPatch, in_a_hurry: bool
) -> None:
    # In a hurry there is no grace to wait for, however long it would be.
    monkeypatch.setattr(processes, "_GRACE", 10_000.0 if in_a_hurry else 0.5)
    then = "import signal; signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('asked').touch())\n"
    then += "pathlib.Path('ready').touch()\nwhile True: signal.pause()"
    caught: list[BaseException] = []

    def run() -> None:
        try:
            here.python(CHILD.format(detached=False, then=then))
        except Stopped as error:
            caught.append(error)

    waiting = threading.Thread(target=run)
    waiting.start()
    wait_until(here.folder / "ready")
    stopping = threading.Thread(target=here.processes.stop)
    stopping.start()
    if in_a_hurry:
        wait_until(here.folder / "asked")
        here.processes.hurry()
    stopping.join(60)
    waiting.join(60)
    assert caught
    assert gone(here.child)
    with pytest.raises(Stopped):
        here.python("")
