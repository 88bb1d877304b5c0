"""A child that had torch is told, one that had not is not, and nothing stays wrapped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pytest_memleak.events.children import ChildWatch

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")

IMPORT_TORCH = [sys.executable, "-c", "import torch"]


def test_a_child_that_imports_torch_is_told() -> None:
    with ChildWatch() as watch:
        child = subprocess.Popen(IMPORT_TORCH)
        child.wait()
    (told,) = watch.unmeasured()
    assert f"-c import torch (pid {child.pid}) imported torch" in told


def test_children_without_torch_are_not_told() -> None:
    with ChildWatch() as watch:
        subprocess.run([shutil.which("true") or "true"], check=True)
        subprocess.run([sys.executable, "-c", "import json"], check=True)
        # Until it runs its program, a child is a copy of this process, torch included: this one for several looks.
        subprocess.run(["/bin/sh", "-c", "true"], check=True, preexec_fn=lambda: time.sleep(0.3))
        os.system("true")
        os.waitpid(os.posix_spawn("/bin/sh", ["sh", "-c", "true"], os.environ), 0)
    assert watch.unmeasured() == ()


def test_a_fork_that_goes_on_to_run_a_program_is_not_told() -> None:
    with ChildWatch() as quick:
        os.spawnv(os.P_WAIT, "/bin/sh", ["sh", "-c", "true"])
    assert quick.unmeasured() == ()
    with ChildWatch() as watch:
        pid = os.fork()
        if pid == 0:
            os.execv("/bin/sh", ["sh", "-c", "sleep 0.3"])
        os.waitpid(pid, 0)
    assert watch.unmeasured() == ()


def test_torch_in_a_grandchild_is_told() -> None:
    with ChildWatch() as watch:
        os.system(f"{sys.executable} -c 'import torch'; true")
    (told,) = watch.unmeasured()
    assert "imported torch" in told


def test_a_job_whose_shell_is_gone_is_told(tmp_path: Path) -> None:
    began, finish = tmp_path / "began", tmp_path / "finish"
    os.mkfifo(finish)
    script = f"open({str(began)!r}, 'w').close(); open({str(finish)!r}).read(); import torch"
    with ChildWatch() as watch:
        shell = subprocess.Popen(["sh", "-c", f'{sys.executable} -c "{script}" & read line'], stdin=subprocess.PIPE)
        while not (began.exists() and len(watch._seen) == 2):
            time.sleep(0.01)
        shell.communicate(b"\n")
        finish.write_text("now")
        while not watch.unmeasured():
            time.sleep(0.01)
    (told,) = watch.unmeasured()
    assert "imported torch" in told
    assert f"(pid {shell.pid})" not in told


def test_a_fork_has_torch_however_short_it_lives() -> None:
    with ChildWatch() as watch:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    (told,) = watch.unmeasured()
    assert f"(pid {pid}) was forked from this process and so has torch" in told


def test_dataloader_workers_are_told_with_the_way_out() -> None:
    data = torch.arange(4.0)
    with ChildWatch() as watch:
        assert len(list(DataLoader(data, num_workers=1, multiprocessing_context="fork"))) == 4  # type: ignore[arg-type]
    (told,) = watch.unmeasured()
    assert "DataLoader worker" in told
    assert "num_workers=0" in told


def test_children_from_before_the_window_are_not_its_own() -> None:
    script = "import torch, sys; print('ready', flush=True); sys.stdin.read()"
    older = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert older.stdout is not None
    assert older.stdout.readline() == b"ready\n"
    with ChildWatch() as watch:
        subprocess.run([sys.executable, "-c", "import json"], check=True)
    older.communicate()
    assert watch.unmeasured() == ()


def test_a_second_window_starts_anew() -> None:
    watch = ChildWatch()
    with watch:
        subprocess.run(IMPORT_TORCH, check=True)
    assert watch.unmeasured()
    with watch:
        pass
    assert watch.unmeasured() == ()


def test_everything_is_restored_and_no_thread_ran() -> None:
    before = (os.fork, os.system, os.posix_spawn, getattr(subprocess, "_fork_exec", None))
    with ChildWatch() as watch:
        assert os.fork is not before[0]
        assert watch._watcher is None
    assert (os.fork, os.system, os.posix_spawn, getattr(subprocess, "_fork_exec", None)) == before
