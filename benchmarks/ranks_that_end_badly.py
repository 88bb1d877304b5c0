"""Ranks that die, hang, raise, or find a port taken, many times each: is it always said, and is nothing ever left?

    python benchmarks/ranks_that_end_badly.py --times 20

Each is a test on two ranks whose message is compared with what it has to say; after each test the processes that it
started are looked for, and the port that its ranks met at is bound. Prints how often all was right, and how many
seconds a test took at least and at most. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 20

# After each test: what is left of it.
CONFTEST = """
import os, pathlib, socket, time

def left():
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if b"STARTED_BY=" + os.environ["STARTED_BY"].encode() + b"\\0" in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            pass
    return [pid for pid in found if pid != str(os.getpid())]

def pytest_runtest_logfinish(nodeid):
    if "RANK" in os.environ:
        return
    until = time.monotonic() + 5
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    taken = []
    for port in pathlib.Path("ports").iterdir():
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not for one that listens
            try:
                free.bind(("127.0.0.1", int(port.name)))
            except OSError:
                taken.append(port.name)
    with open("left", "a") as file:
        print(nodeid, "processes", left(), "ports", taken, file=file)
"""

START = """
import os, pathlib, pytest, signal, time, torch, torch.distributed as dist

RANK = int(os.environ.get("RANK", -1))
if RANK >= 0:
    pathlib.Path("ports", os.environ["MASTER_PORT"]).touch()
pytestmark = [pytest.mark.ranks(2, timeout={timeout}), pytest.mark.parametrize("time_", range({times}))]
"""


@dataclass(frozen=True)
class Case:
    name: str
    body: str
    says: str
    """A pattern for the whole message."""


CASES = (
    Case(
        "killed in a collective",
        "if RANK == 1: os.kill(os.getpid(), signal.SIGKILL)\n    dist.all_reduce(torch.ones(1 << 20))",
        r"rank 1 of 2 was killed by SIGKILL in its body\b",
    ),
    Case(
        "hangs",
        "if RANK == 1: time.sleep(600)\n    dist.barrier()",
        r"rank 1 of 2 hung in its body: at test_it.py:\d+\n(.*\n)*"
        r"rank 0 of 2 waited for others in its body: in barrier",
    ),
    Case("raises", "if RANK == 1: raise ValueError('mine')\n    dist.barrier()", r"rank 1 of 2: ValueError: mine"),
    Case(
        "a port is taken",
        "port = int(os.environ['TAKEN'])\n    assert os.environ['MASTER_PORT'] != os.environ['TAKEN']\n"
        "    if RANK == 0: dist.TCPStore('localhost', port, 2, is_master=True)\n    else: dist.barrier()",
        r"rank 0 of 2: .*\b{port}\b",
    ),
)


def tried(case: Case, times: int) -> tuple[int, int, list[float], list[str]]:
    with tempfile.TemporaryDirectory() as made, socket.create_server(
        ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
    ) as taken:  # fmt: skip
        folder, port = Path(made), taken.getsockname()[1]
        (folder / "conftest.py").write_text(CONFTEST)
        (folder / "ports").mkdir()
        text = START.format(timeout=TIMEOUT, times=times) + f"\ndef test_it(time_):\n    {case.body}\n"
        (folder / "test_it.py").write_text(text)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "PYTHONPATH": path, "STARTED_BY": made, "TAKEN": str(port), "MASTER_PORT": str(port), "CI": "true",
        }  # fmt: skip
        command = ["-m", "pytest", "-p", "no:cacheprovider", "-q", "--gpu-backend=cpu", "--junitxml=out.xml"]
        subprocess.run([sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        right, seconds, wrong = 0, [], []
        for test in ElementTree.parse(folder / "out.xml").iter("testcase"):
            failure = test.find("failure")
            message = "" if failure is None else f"{failure.get('message')}\n{failure.text}"
            if re.search(case.says.format(port=port), message):
                right += 1
            else:
                wrong.append(message[:2000] or "it passed")
            seconds.append(float(test.get("time", "nan")))
        clean = (folder / "left").read_text().count("processes [] ports []")
    return right, clean, seconds, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--case", choices=[case.name for case in CASES])
    options = parser.parse_args()
    for case in CASES:
        if options.case in (None, case.name):
            right, clean, seconds, wrong = tried(case, options.times)
            print(
                f"{case.name}: {right} of {options.times} said so, {clean} left nothing; "
                f"{min(seconds):.1f} to {max(seconds):.1f} s",
                flush=True,
            )
            for message in wrong:
                print("    " + message.replace("\n", "\n    "), flush=True)


if __name__ == "__main__":
    main()
