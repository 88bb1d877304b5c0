"""Who started whom, asked of the system."""

from __future__ import annotations

import os
import subprocess
import sys

from pytest_memleak.workers.processes import name_of, owner

_CHILD = """
import subprocess, sys
subprocess.run([sys.executable, "-c", "import os; print(os.getpid(), flush=True); input()"])
"""


def test_a_process_belongs_to_whoever_started_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    ours = frozenset({os.getpid()})
    assert owner(os.getpid(), ours) == os.getpid()
    assert owner(child.pid, ours) == owner(grandchild, ours) == os.getpid()
    assert owner(grandchild, ours | {child.pid}) == child.pid  # the nearest
    assert owner(os.getppid(), ours) is None
    assert owner(grandchild, frozenset()) is None
    child.communicate("\n")


def test_who_is_not_there_is_nobodys() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert owner(gone.pid, frozenset({os.getpid()})) is None
    assert name_of(gone.pid) == ""
    assert name_of(os.getpid())
