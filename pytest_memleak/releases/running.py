"""Runs, several at once: an environment for those that want the same, pytest in it, and the environment's end."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_memleak.errors import Unavailable
from pytest_memleak.releases import told
from pytest_memleak.releases.cell import Began, Done, Environment, Event, Outcome, Run, not_run
from pytest_memleak.releases.environment import DISK_IS_FULL, NotMade, Uv, without_this_python
from pytest_memleak.releases.expecting import expecting
from pytest_memleak.releases.package import make_wheel
from pytest_memleak.releases.processes import Processes, Stopped
from pytest_memleak.releases.store import Store
from pytest_memleak.releases.verdicts import Told, judged

INTERRUPTED = "interrupted"


@dataclass
class Workshop:
    """Where environments are made, and what they all need. To be used with `with`: it is gone at the end."""

    uv: Uv
    store: Store
    tell: Callable[[Event], None] = lambda event: None
    jobs: int = 1
    keep: bool = False
    folder: Path = field(init=False)
    wheel: Path = field(init=False)
    interrupted: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _made: int = field(default=0, init=False)

    def __enter__(self) -> Workshop:
        try:
            # A short name: tests may make sockets below it, whose paths have little room.
            self.folder = Path(tempfile.mkdtemp(prefix="memleak-"))
        except OSError as error:
            raise Unavailable(f"there is no place for environments: {error}") from error
        try:
            self.wheel = make_wheel(self.folder)
        except BaseException as error:
            self.__exit__()
            if isinstance(error, OSError):
                raise Unavailable(f"there is no room for environments in {self.folder}: {error.strerror}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def processes(self) -> Processes:
        return self.uv.processes

    def run(self, runs: Sequence[Run]) -> list[Outcome]:
        """In the order of the runs. Ctrl-C ends what is running; what was not done then says so."""
        outcomes: dict[int, Outcome] = {}
        groups: dict[Environment, list[int]] = {}
        for at, run in enumerate(runs):
            stored = not_run(run, run.cannot) if run.cannot else self.store.get(run)
            if stored is None:
                groups.setdefault(run.environment, []).append(at)
            else:
                outcomes[at] = self._told(stored)
        with ThreadPoolExecutor(max(self.jobs, 1), thread_name_prefix="memleak") as pool:
            groups_run: list[Future[dict[int, Outcome]]] = []
            try:
                for environment, places in groups.items():
                    groups_run.append(pool.submit(self._group, environment, {at: runs[at] for at in places}))
                wait(groups_run)
            except KeyboardInterrupt:
                self.interrupted = True
                # Those that were running note what they had; the others find that nothing is started any more.
                self.processes.stop()
            for group in groups_run:
                outcomes |= group.result()
        return [outcomes.get(at) or expecting(not_run(run, INTERRUPTED)) for at, run in enumerate(runs)]

    def _group(self, environment: Environment, runs: dict[int, Run]) -> dict[int, Outcome]:
        outcomes: dict[int, Outcome] = {}
        folder = self._new_folder()
        try:
            self._tell(Began(environment.versions, "installing"))
            python, installed = self.uv.make(environment, folder / "env", (str(self.wheel),))
            for at, run in runs.items():
                self._tell(Began(environment.versions, " ".join(run.names)))
                outcome = self._pytest(run, folder / str(at), python, installed)
                self.store.put(outcome)
                outcomes[at] = self._told(outcome)
        except Stopped:
            reason = INTERRUPTED
        except NotMade as error:
            reason = f"no environment: {error}"
        except OSError as error:
            reason = f"the disk is full: {error}" if DISK_IS_FULL in str(error) else f"could not be run: {error}"
        else:
            return outcomes
        finally:
            if not self.keep:
                shutil.rmtree(folder, ignore_errors=True)
        for at, run in runs.items():
            if at not in outcomes:
                # After Ctrl-C the table says which cells are left: a line for each would push away what was done.
                left = not_run(run, reason)
                outcomes[at] = expecting(left) if reason == INTERRUPTED else self._told(left)
        return outcomes

    def _told(self, outcome: Outcome) -> Outcome:
        """Held against its case only now: what is stored is what was read."""
        outcome = expecting(outcome)
        self._tell(Done(outcome.run.environment.versions, outcome.cells))
        return outcome

    def _new_folder(self) -> Path:
        with self._lock:
            self._made += 1
            return self.folder / str(self._made)

    def _tell(self, event: Event) -> None:
        with self._lock:
            self.tell(event)

    def _pytest(self, run: Run, folder: Path, python: Path, installed: dict[str, str]) -> Outcome:
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        lines, document = folder / "told", folder / "memleak.json"
        # The script and not -m, which would put the working directory before the environment's packages.
        command = [str(python), str(python.with_name("pytest")), *run.arguments]
        # Several at once must not write into one cache; without any, an ini file that names one would be an error.
        command += ["-p", told.__name__, "-o", f"cache_dir={folder / 'cache'}", f"--memleak-json={document}"]
        command += ["-o", "memleak_baseline="]  # which was recorded with the releases that the project uses
        cwd = Path.cwd()
        if run.case:
            cwd = folder / "empty"
            cwd.mkdir()
            (folder / "pytest.ini").write_text("[pytest]\n")
            command += ["-c", str(folder / "pytest.ini")]
            command += [f"--rootdir={run.case.folder}", f"--confcutdir={run.case.folder}"]
        # The last one counts: a folder that an ini file or the caller names would be emptied by each of them in turn.
        command.append(f"--basetemp={folder / 'base'}")
        env = self._variables(run, python, temporary) | {told.PATH: str(lines)}
        ended = self.processes.run(command, cwd=cwd, env=env, timeout=run.timeout)
        if self.keep:
            (folder / "output").write_text(ended.output, encoding="utf-8", errors="replace")
        said = Told.read(lines.read_text(encoding="utf-8", errors="replace") if lines.exists() else "")
        return judged(run, ended, said, _document(document), installed)

    def _variables(self, run: Run, python: Path, temporary: Path) -> dict[str, str]:
        env = {"HF_HUB_OFFLINE": "1"} | without_this_python()
        if run.case:
            # What the caller's shell asks for is not what a case is about.
            env = {name: value for name, value in env.items() if not name.startswith(("MEMLEAK_", "PYTEST_"))}
        return env | {
            "PATH": f"{python.parent}{os.pathsep}{env.get('PATH', '')}",
            "VIRTUAL_ENV": str(python.parent.parent),
            # What tests leave behind goes with the environment.
            "TMPDIR": str(temporary),
            told.PACKAGES: ",".join(package for package, _ in run.environment.versions),
        }


def _document(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return found
