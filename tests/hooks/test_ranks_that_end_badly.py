"""A rank that dies, hangs or disagrees: the test fails in time, says which rank and why, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pytest_memleak.ranks.world import current
from tests.conftest import Run

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed"),
    pytest.mark.skipif(current() is not None, reason="these tests start ranks of their own"),
    pytest.mark.skipif(sys.platform != "linux", reason="what becomes of processes is looked up in /proc"),
]

START = """
import os, pathlib, pytest, signal, subprocess, sys, time, torch, torch.distributed as dist
RANK = int(os.environ.get("RANK", -1))
pytestmark = pytest.mark.ranks(2)
"""


def left_of(folder: Path) -> list[str]:
    """Processes that were started below a folder and still are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LEFT_BY={folder}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # gone, or somebody else's
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("LEFT_BY", str(pytester.path))
    yield
    deadline = time.monotonic() + 10
    while (left := left_of(pytester.path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_one_that_dies(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
def test_killed():
    if RANK == 1:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # goes with it
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

def test_leaves():
    if RANK == 0:
        print("last words", file=sys.stderr)
        os._exit(7)
    dist.barrier()

def test_leaves_without_a_failure():
    if RANK == 1: os._exit(0)
    dist.barrier()

def test_crashes():
    if RANK == 1: os.kill(os.getpid(), signal.SIGSEGV)
    dist.barrier()

@pytest.fixture
def gone():
    if RANK == 0: os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()

@pytest.mark.max_peak("1GiB")
def test_in_its_set_up(gone): ...
""",
        "--memleak-json=out.json",
    )
    result.assert_outcomes(failed=4, errors=1)
    result.stdout.fnmatch_lines(
        [
            "rank 0 of 2 was killed by SIGKILL in the set-up of its fixtures",
            "rank 1 of 2 was killed by SIGKILL in its body",
            "rank 0 of 2 ended in its body, with exit status 7",
            "  | last words",
            "rank 1 of 2 ended in its body, with exit status 0",
            "rank 1 of 2 was killed by SIGSEGV in its body: at test_it.py:*",
            "FAILED test_it.py::test_killed - rank 1 of 2 was killed by SIGKILL*",
            "FAILED test_it.py::test_leaves - rank 0 of 2 ended in its body*",
            "FAILED test_it.py::test_leaves_without_a_failure - rank 1 of 2 ended in its b*",
        ]
    )


def test_one_that_raises_does_not_keep_the_others(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
def test_raises():
    if RANK == 1: raise ValueError("mine")
    time.sleep(600)

@pytest.mark.max_leak  # whose reports are held back until the teardown
def test_raises_beside_a_leak():
    if RANK == 1: raise ValueError("mine")
    time.sleep(600)

@pytest.mark.xfail
def test_raises_as_expected():
    if RANK == 1: raise ValueError("mine")
    time.sleep(600)
"""
    )
    result.assert_outcomes(failed=2, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "rank 1 of 2:",
            "E*ValueError: mine",
            "rank 0 of 2 was stopped in its body when rank 1 had failed: at test_it.py:*",
            "rank 0 of 2 was stopped in its body when rank 1 had failed: at test_it.py:*",
            "FAILED test_it.py::test_raises - rank 1 of 2: ValueError: mine",
        ]
    )


def test_one_whose_process_does_not_end(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
import threading

@pytest.mark.ranks(2, timeout=25)
def test_thread():
    if RANK == 1: threading.Thread(target=time.sleep, args=(600,)).start()
"""
    )
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["rank 1 of 2 did not end when the test was over: a thread, *"])


def test_one_that_hangs_or_was_stopped(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
@pytest.mark.ranks(3, timeout=30)
def test_hangs():
    if RANK == 0: time.sleep(600)
    if RANK == 1: os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "rank 0 of 3 hung in its body: at test_it.py:*",
            "  it did not end within 30 s (ranks(timeout=…), --memleak-ranks-timeout)",
            "rank 1 of 3 hung in its body: its process is stopped (SIGSTOP)",
            "rank 2 of 3 waited for others in its body: in barrier, called at test_it.py:*",
        ]
    )


def test_ranks_that_disagree_on_the_collective(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
def test_disagree():
    tensor = torch.ones(4)
    if RANK == 0:
        dist.recv(tensor, src=1)
    else:
        dist.barrier()
""",
        "--memleak-ranks-timeout=30",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*the ranks disagree on the collective: rank 0 in recv, called at test_it.py:*; rank 1 in barrier, *",
        ]
    )


def test_what_keeps_a_rank_from_the_test_is_said(run_on_cpu: Run) -> None:
    result = run_on_cpu(
        START
        + """
if RANK == 1:
    raise RuntimeError("not on this one")

@pytest.mark.parametrize("own", [os.environ.get("RANK", "parent")])
def test_other_names(own): ...
"""
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "rank 0 of 2 did not find the test 'test_it.py::test_other_names?parent?' in *",
            "rank 1 of 2 did not get to the test: it could not be collected",
            "*RuntimeError: not on this one",
        ]
    )


def test_a_port_that_is_taken_is_nobodys_concern(run_on_cpu: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks meet where a port was free, whatever the caller's environment says; one of the test's own is its affair."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        result = run_on_cpu(
            START
            + f"""
def test_not_ours():
    assert os.environ["MASTER_PORT"] != "{port}"
    dist.barrier()
    print("at port", os.environ["MASTER_PORT"], file=open({str(Path.cwd() / "port")!r}, "w"))

@pytest.mark.ranks(2, backend=False)
def test_of_its_own():
    if RANK == 0:
        dist.TCPStore("localhost", {port}, 2, is_master=True)
"""
        )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["rank 0 of 2:", f"E*{port}*"])
    used = int(Path("port").read_text().split()[-1])
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", used))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_who_stops_pytest_stops_the_ranks(pytester: pytest.Pytester, number: int) -> None:
    """The fixture of all tests here looks for what is left."""
    pytester.makepyfile(
        test_it=START
        + """
def test_long(request):
    pathlib.Path(__file__).with_name(f"began-{RANK}").touch()
    time.sleep(600)
"""
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--gpu-backend=cpu"]
    run = subprocess.Popen(command, cwd=pytester.path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 60
    while len(list(pytester.path.glob("began-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(pytester.path.glob("began-*"))) == 2
    os.kill(run.pid, number)
    printed, _ = run.communicate(timeout=60)
    if number == signal.SIGINT:
        assert run.returncode == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in printed
    else:
        assert run.returncode == -number
