"""Processes that change one file at the same time."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_memleak.records.baselines import Baseline
from pytest_memleak.records.baselines.locking import locked

_ADD = """
import sys
from pathlib import Path
from pytest_memleak.hooks.baselines import write
from pytest_memleak.records.baselines import Entry, Key
from pytest_memleak.records.baselines.ratchet import Changes
from pytest_memleak.records.baselines.terms import Terms

path, name = Path(sys.argv[1]), sys.argv[2]
for number in range(30):
    entry = Entry(Key(f"{name}[{number}]", "cpu", "CPU", "2.13"), {}).with_peaks({"cpu": number})
    write(Terms(path, path.name, "test"), Changes({entry.key: (None, entry)}))
"""


def test_no_entry_of_anyone_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "baseline.txt"
    names = ["one", "two", "three"]
    running = [subprocess.Popen([sys.executable, "-c", _ADD, str(path), name]) for name in names]
    assert [process.wait(300) for process in running] == [0, 0, 0]
    found = {key.test for key in Baseline.read(path).entries}
    assert found == {f"{name}[{number}]" for name in names for number in range(30)}
    assert list(path.parent.iterdir()) == [path]


def test_who_comes_second_waits(tmp_path: Path) -> None:
    path = tmp_path / "baseline.txt"
    program = (
        "import sys; from pathlib import Path\nfrom pytest_memleak.records.baselines.locking import locked\n"
        "print('asks', flush=True)\nwith locked(Path(sys.argv[1])): print('has it', flush=True)\n"
    )
    with locked(path):
        other = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "asks\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.5)
    assert other.stdout.read() == "has it\n"
    assert other.wait(60) == 0
    other.stdout.close()


def test_a_process_that_dies_gives_its_lock_back(tmp_path: Path) -> None:
    path = tmp_path / "baseline.txt"
    program = (
        "import os, sys; from pathlib import Path\nfrom pytest_memleak.records.baselines.locking import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -9
    with locked(path):
        pass


def test_where_folders_cannot_be_locked_a_file_elsewhere_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    taken = []

    def only_files(descriptor: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(9, "Bad file descriptor")
        taken.append(descriptor)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", only_files)
    with locked(tmp_path / "baseline.txt"):
        assert len(taken) == 1
    assert list(tmp_path.iterdir()) == []
