"""Starts the processes of a test's ranks by torch elastic, and waits until all of them are gone.

Checked on torch 2.6 to 2.13. What the ranks found is in the job's folder; here it is told only how they ended.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pytest_memleak.errors import Unavailable
from pytest_memleak.ranks.deadline import Deadline
from pytest_memleak.ranks.job import Job

_SHUTDOWN = 5
"""Seconds that a rank may take to die when it is told to; then it is killed."""
_POLL = 0.05
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")  # those that torch elastic answers to


@dataclass(frozen=True)
class Ended:
    """How the processes ended, by rank."""

    codes: dict[int, int]
    """Exit codes; a signal's number is negative. Empty if pytest was told to stop, and has stopped them."""
    hung: dict[int, str]
    """Those whose time was up, with what the system says of them."""
    out: dict[int, bytes]
    """What they printed."""
    err: dict[int, bytes]
    lingering: frozenset[int] = frozenset()
    """Those that had said all, and whose processes had to be ended."""


def require_elastic() -> None:
    try:
        importlib.import_module("torch.distributed.launcher.api")
    except ImportError as error:
        raise Unavailable(f"ranks are started by torch elastic, which this torch lacks: {error}") from None


def launch(job: Job, shown: bool) -> Ended:
    """`shown`: what the ranks print is printed here as well, each line with its rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    job.save()
    logs = Path(job.folder, "printed")
    logs.mkdir()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job.size,
        run_id=uuid4().hex,
        # The agent's own store at a port that is free: it is there before the ranks are, and they are told of it.
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=_POLL,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL, tee=Std.ALL if shown else Std.NONE),
        **_known_of(LaunchConfig, log_line_prefix_template="[rank ${rank}] ", shutdown_timeout=_SHUTDOWN),
    )
    codes = dict.fromkeys(range(job.size), 0)
    stopped_by: int | None = None
    command = ["-u", "-m", "pytest_memleak.ranks.rank", job.folder]
    with Deadline(job) as deadline, _quiet(), _files_left_open(), _signals_restored(), _environment():
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as failed:
            codes |= {rank: failure.exitcode for rank, failure in failed.failures.items()}
        except SignalException as told:
            stopped_by, codes = told.sigval, {}
        finally:
            _kill_what_is_left(job)
    if stopped_by is not None:
        # It was meant for pytest. The agent has stopped the ranks, and now pytest has it, whatever it does about it.
        os.kill(os.getpid(), stopped_by)
    out, err = _printed(logs, "stdout.log"), _printed(logs, "stderr.log")
    return Ended(codes, deadline.hung, out, err, frozenset(deadline.lingering))


def _known_of(config: Any, **wanted: object) -> dict[str, Any]:
    """Of what is wanted, what this torch's own configuration knows."""
    known = inspect.signature(config).parameters
    return {name: value for name, value in wanted.items() if name in known}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The agent tells of each failure, at length; the test's report does."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _files_left_open() -> Iterator[None]:
    """The agent closes none of the files that ranks print to if these end of themselves: no error of the test, where
    warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    before = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS}
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not the main thread: then torch has not changed them either
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Ranks find this package where it is here; what torch writes into the environment goes again."""
    before = dict(os.environ)
    root = str(Path(__file__).parent.parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, before.get("PYTHONPATH")]))
    # A caller's own, from a world of which this process is no rank.
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _kill_what_is_left(job: Job) -> None:
    """Each rank leads a session of its own: what it started and did not stop is in there."""
    for rank in range(job.size):
        with contextlib.suppress(OSError, ValueError):
            os.killpg(int(job.process(rank).read_text()), signal.SIGKILL)


def _printed(logs: Path, name: str) -> dict[int, bytes]:
    return {int(path.parent.name): path.read_bytes() for path in logs.rglob(name)}
