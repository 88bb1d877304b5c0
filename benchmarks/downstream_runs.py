"""One project's tests, run several times: without this plugin, and measured by it, in turns."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import downstream_outcomes as outcomes
from benchmarks.downstream_outcomes import Outcomes
from benchmarks.downstream_projects import Project
from pytest_memleak.records import stored
from pytest_memleak.records.stored import StoredRun

PLUGINS = Path(__file__).resolve().parent / "upstream_plugins"
# Every promise for every test. The host's is one that none breaks: it is measured all the same.
MEASURED = ("--memleak-mode=report", "--memleak-max-leak=0", "--memleak-max-host-peak=1TiB")
BACKENDS = {"cpu": "cpu", "cuda": "real", "simulated": "simulated"}
_RAN = (0, 1)
"""pytest's exit status where tests ran."""
_WARM_UP = "def test_engines(card):\n    import torch\n\n    torch.ones(1, device=card.device)\n"


class NotRun(Exception):
    """A run that says nothing; the message says why, and where pytest's own words are."""


@dataclass(frozen=True)
class Ran:
    """One run of all tests."""

    outcomes: Outcomes
    seconds: float
    processor: float
    """Seconds of the processor, those of its child processes included."""
    measured: StoredRun | None = None
    ended_by: str = ""
    """What ended it early, if something did."""


@dataclass
class Runs:
    """Of one project. Each leaves a log in `folder`."""

    project: Project
    python: Path
    start: Path
    folder: Path
    device: str
    workers: int = 0
    timeout: float = 900.0
    tell: Callable[[str], None] = lambda text: None
    without: list[Ran] = field(default_factory=list)
    with_it: list[Ran] = field(default_factory=list)

    def all(self) -> Runs:
        """In turns, so that what else the machine does falls on both: without, recorded, without, held against that."""
        self._warm_up()
        baseline = f"--memleak-baseline={self.folder / 'baseline.txt'}"
        self.without.append(self._run("without", self._unmeasured()))
        self.with_it.append(self._run("recorded", [*MEASURED, baseline, "--memleak-update=new"]))
        self.without.append(self._run("without again", self._unmeasured()))
        self.with_it.append(self._run("compared", [*MEASURED, baseline]))
        return self

    def _unmeasured(self) -> list[str]:
        # On a simulated card there is no run without the plugin: it measures nothing, but the card is its own.
        return [] if self.device == "simulated" else ["-p", "no:memleak"]

    def _warm_up(self) -> None:
        """The engines are built on first use, which is no project's time."""
        test = self.folder / "test_engines.py"
        test.write_text(_WARM_UP, encoding="utf-8")
        log = self.folder / "engines.log"
        command = [str(self.python), "-m", "pytest", "-c", os.devnull, f"--rootdir={self.folder}", str(test), *MEASURED]
        status, _, _ = timed([*command, self._backend], self.folder, self._environment(), log, self.timeout)
        if status:
            raise NotRun(f"{self.device} is no card here, or the engines cannot be built; pytest said:\n{_end_of(log)}")

    def _run(self, name: str, arguments: Sequence[str]) -> Ran:
        stem = self.folder / name.replace(" ", "-")
        tsv, log, told = stem.with_suffix(".tsv"), stem.with_suffix(".log"), stem.with_suffix(".json")
        command = [str(self.python), "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-p", "outcomes"]
        command += ["-o", "addopts=", "--continue-on-collection-errors", *self.project.pytest_arguments(), *arguments]
        if "no:memleak" not in arguments:
            command.append(self._backend)
        if arguments and "no:memleak" not in arguments:
            command.append(f"--memleak-json={told}")
        if self.workers:
            command += ["-n", str(self.workers)]
        environment = self._environment() | {"OUTCOMES": str(tsv)}
        status, seconds, processor = timed(command, self.start, environment, log, self.timeout)
        if not tsv.exists():
            raise NotRun(f"no test ran {name}; pytest said:\n{_end_of(log)}")
        found = outcomes.read(tsv.read_text(encoding="utf-8").splitlines())
        ended_by = "" if status in _RAN else _in_words(status)
        measured = stored.read(told) if told.exists() else None
        ran = Ran(found, seconds, processor, measured, ended_by)
        self.tell(f"{name}: {in_numbers(found)} in {seconds:.0f} s ({processor:.0f} s of the processor) {ended_by}")
        return ran

    @property
    def _backend(self) -> str:
        return f"--gpu-backend={BACKENDS[self.device]}"

    def _environment(self) -> dict[str, str]:
        """Nothing of the user's but what a card and a compiler are found by."""
        kept = ("LD_LIBRARY_PATH", "CUDA_HOME", "XDG_CACHE_HOME", "CXX", "LANG", "TMPDIR")
        if self.device == "cuda":
            kept += ("CUDA_VISIBLE_DEVICES",)
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            **({} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}),
            "PATH": os.pathsep.join((str(self.python.parent), os.defpath)),
            "PYTHONPATH": str(PLUGINS),
            "HOME": str(home),
            "OMP_NUM_THREADS": "1",
            **dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1"),
        }


def timed(
    command: Sequence[str], cwd: Path, environment: dict[str, str], log: Path, timeout: float
) -> tuple[int, float, float]:
    """Its exit status, the clock's seconds and the processor's, children included. After `timeout` it is ended."""
    with log.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        # A session of its own: what it started ends with it.
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        timer = threading.Timer(timeout, os.killpg, (process.pid, signal.SIGTERM))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, seconds, usage.ru_utime + usage.ru_stime


def in_numbers(found: Outcomes) -> str:
    kinds = list(found.values())
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in reversed(outcomes.KINDS) if kind in kinds)


def _in_words(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"pytest's exit status {status}"


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
