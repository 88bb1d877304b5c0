"""A child that had torch is told, one that had not is not, and nothing stays wrapped."""

from __future__ import annotations

import ctypes.util
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from os import fork as fork_bound_before
from pathlib import Path
from typing import Any

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
    data: Any = torch.arange(4.0)
    with ChildWatch() as watch:
        assert len(list(DataLoader(data, num_workers=1, multiprocessing_context="fork"))) == 4
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
    before = (os.system, os.posix_spawn, getattr(subprocess, "_fork_exec", None))
    with ChildWatch() as watch:
        assert os.system is not before[0]
        assert watch._watcher is None
    assert (os.system, os.posix_spawn, getattr(subprocess, "_fork_exec", None)) == before


def compute(elements: int) -> float:
    return float(torch.ones(elements).sum())


def test_a_pool_from_before_that_works_is_told_and_one_that_waits_is_not() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(compute, (10,))
        with ChildWatch() as waiting:
            pass
        with ChildWatch() as working:
            pool.apply(compute, (10_000_000,))
        with ChildWatch() as paused:
            paused.pause()
            pool.apply(compute, (10_000_000,))
            paused.resume()
    assert waiting.unmeasured() == ()
    (told,) = working.unmeasured()
    assert "has torch, was there before and worked meanwhile" in told
    assert paused.unmeasured() == ()


def test_one_from_before_that_ended_is_told() -> None:
    script = "import torch, sys; print('ready', flush=True); sys.stdin.read()"
    older = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert older.stdout is not None
    assert older.stdout.readline() == b"ready\n"
    with ChildWatch() as watch:
        older.communicate()
    (told,) = watch.unmeasured()
    # A look may find it while it is ending, which is work as well.
    assert f"(pid {older.pid}) ha" in told
    assert "was there before and" in told


def test_each_test_that_uses_a_forkserver_is_told() -> None:
    context = multiprocessing.get_context("forkserver")
    for _ in range(2):
        with ChildWatch() as watch:
            child = context.Process(target=compute, args=(10,))
            child.start()
            child.join()
        assert any(f"(pid {child.pid})" in told for told in watch.unmeasured())


def test_a_fork_by_another_name_is_told() -> None:
    with ChildWatch() as watch:
        pid = fork_bound_before()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    (told,) = watch.unmeasured()
    assert f"(pid {pid}) was forked from this process" in told


def test_a_fork_that_the_watcher_sees_before_the_interpreter_tells_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = ChildWatch()
    told_by_the_interpreter = watch.forked

    def watcher_comes_first() -> None:
        watch._look()
        told_by_the_interpreter()

    monkeypatch.setattr(watch, "forked", watcher_comes_first)
    end, until_then = os.pipe()
    with watch:
        pid = os.fork()
        if pid == 0:
            os.close(until_then)
            os.read(end, 1)
            os._exit(0)
        assert pid in watch._seen
        os.close(until_then)
        os.waitpid(pid, 0)
    os.close(end)
    (told,) = watch.unmeasured()
    assert f"(pid {pid}) was forked from this process" in told


def test_what_native_code_starts_is_told_by_the_time_it_used() -> None:
    system = ctypes.CDLL(None).system
    with ChildWatch() as harmless:
        system(b"true")
    assert harmless.unmeasured() == ()
    with ChildWatch() as watch:
        system(f"{sys.executable} -c 'import torch'".encode())
    (told,) = watch.unmeasured()
    # The second where children of other tests are alive, and are looked at all the time.
    assert "native code" in told or "imported torch" in told


def test_children_of_a_pause_are_not_told_unless_they_work_later() -> None:
    script = (
        "import torch, sys; print('ready', flush=True); sys.stdin.readline(); torch.ones(1000, 1000).sum();"
        "print('done', flush=True); sys.stdin.read()"
    )
    with ChildWatch() as watch:
        watch.pause()
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert server.stdout is not None
        assert server.stdin is not None
        server.stdout.readline()
        watch.resume()
        assert watch.unmeasured() == ()
        server.stdin.write(b"\n")
        server.stdin.flush()
        assert server.stdout.readline() == b"done\n"
        (told,) = watch.unmeasured()
        assert f"(pid {server.pid}) has torch" in told
    server.communicate()


@pytest.mark.parametrize("guard", ["", "import sys\nif sys.platform != 'never':\n    "])
def test_the_question_whether_a_library_can_be_loaded_is_harmless(guard: str) -> None:
    library = ctypes.util.find_library("c")
    probe = f'{guard}import torch  # noqa: F401\nfrom ctypes import cdll\ncdll.LoadLibrary("{library}")\n'
    with ChildWatch() as watch:
        subprocess.run([sys.executable, "-c", probe], check=True)
    assert watch.unmeasured() == ()
    with ChildWatch() as watch:
        subprocess.run([sys.executable, "-c", probe + "torch.ones(1)"], check=True)
    (told,) = watch.unmeasured()
    assert "\n" not in told
