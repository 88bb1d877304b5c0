"""Runs a test file on several ranks over gloo, each a pytest of its own, as torchrun would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_CONFTEST = """
import os
import pytest_memleak.values.exchange as exchange
import torch.distributed as dist

exchange.PATIENCE = float(os.environ.get("PATIENCE", "150"))

def pytest_sessionstart(session):
    dist.init_process_group("gloo")

def pytest_sessionfinish(session):
    dist.destroy_process_group()
"""

Told = dict[str, dict[str, Any]]
"""By the test's name its record, as in the JSON report."""


def run_on_ranks(pytester: pytest.Pytester, text: str, size: int = 2, **environment: str) -> list[Told]:
    pytester.makepyfile(test_it=text)
    pytester.makeconftest(_CONFTEST)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **environment}
    started = []
    for rank in range(size):
        own = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--gpu-backend=cpu"]
        with Path(pytester.path, f"rank{rank}.txt").open("w") as output:
            process = subprocess.Popen(
                [*command, f"--memleak-json=rank{rank}.json"],
                cwd=pytester.path,
                env=own,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
    for process in started:
        try:
            process.wait(timeout=240)
        finally:
            process.kill()
    return [_told(Path(pytester.path), rank) for rank in range(size)]


def _told(folder: Path, rank: int) -> Told:
    print(f"rank {rank}:\n{(folder / f'rank{rank}.txt').read_text()}")
    document = json.loads((folder / f"rank{rank}.json").read_text())
    return {test["nodeid"].rpartition("::")[2]: test for test in document["tests"]}
