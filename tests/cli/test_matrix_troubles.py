"""``memleak matrix`` where something ends it, or a part: it keeps what it has, and what did not run is never green."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
from pathlib import Path

import pytest

from pytest_memleak.cli.main import main
from tests.fake_releases import Project

SMALL = "import fakelib\n\ndef test_any():\n    pass\n"


def test_a_process_that_dies_leaves_what_had_ended_in_doubt_and_the_rest_not_run(project: Project) -> None:
    project.write("import os\ndef test_a(): pass\ndef test_b(): os.abort()\ndef test_c(): pass\n")
    done = project.memleak("matrix", "--vary", "fakelib==1.0", "--json", "out.json", "--", "test_it.py")
    assert done.returncode == 1
    said = {cell["test"][-1]: (cell["verdict"], cell["reason"]) for cell in project.data()["cells"]}
    assert said["a"] == ("inconclusive", "pytest was ended by signal 6")
    assert [said[test] for test in "bc"] == [("not-run", "pytest was ended by signal 6")] * 2


def test_one_that_takes_too_long_is_ended(project: Project) -> None:
    project.write("import threading\ndef test_long(): threading.Event().wait()\n")
    done = project.memleak(
        "matrix", "--vary", "fakelib==1.0", "--timeout", "5", "--json", "out.json", "--", "test_it.py"
    )
    assert done.returncode == 1
    (cell,) = project.data()["cells"]
    assert (cell["verdict"], cell["reason"]) == ("not-run", "it took longer than 5 s and was ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_tells_what_it_has_and_goes_on_from_there(project: Project, number: signal.Signals) -> None:
    project.write(
        "import pathlib, threading, fakelib\n"
        "def test_it():\n"
        "    if fakelib.VERSION > (1, 0) and not pathlib.Path('go').exists():\n"
        "        pathlib.Path('started').touch()\n"
        "        threading.Event().wait()\n"
    )
    call = ["matrix", "--vary", "fakelib==1.0,1.1", "--jobs", "1", "--json", "out.json", "--", "test_it.py"]
    process = project.start(*call)
    out, err = project.interrupt(process, project.folder / "started", number)
    assert process.returncode == 130, err
    assert {v: (c["verdict"], c["reason"]) for v, c in project.cells().items()} == {
        "1.0": ("pass", ""),
        "1.1": ("not-run", "interrupted"),
    }
    assert project.data()["interrupted"] is True
    assert "interrupted: the same call goes on from here" in out
    assert list((project.folder.parent / "tmp").iterdir()) == []

    (project.folder / "go").touch()
    resumed = project.memleak(*call)
    assert resumed.returncode == 0, resumed.stderr
    assert [bool(cell["stored"]) for cell in project.cells().values()] == [True, False]
    assert "1 cell of them from an earlier call that did not come to its end" in resumed.stdout
    assert "--fresh runs them anew" in resumed.stdout

    # It has been told in full, so the next call is a new one.
    anew = project.memleak(*call)
    assert [cell["stored"] for cell in project.cells().values()] == [None, None]
    assert "earlier call" not in anew.stdout


def test_a_second_ctrl_c_ends_what_does_not_want_to_end_and_loses_nothing(project: Project) -> None:
    project.write(
        "import os, pathlib, signal, fakelib\n"
        "def test_it():\n"
        "    if fakelib.VERSION > (1, 0):\n"
        "        signal.signal(signal.SIGTERM, lambda *_: pathlib.Path('asked').touch())\n"
        "        pathlib.Path('started').write_text(str(os.getpid()))\n"
        "        while True: signal.pause()\n"
    )
    process = project.start(
        *("matrix", "--vary", "fakelib==1.0,1.1", "--jobs", "1", "--json", "out.json", "--", "test_it.py")
    )
    project.wait_for(process, project.folder / "started")
    process.send_signal(signal.SIGINT)
    out, err = project.interrupt(process, project.folder / "asked", signal.SIGINT)
    assert process.returncode == 130, err
    assert "interrupted: the same call goes on from here" in out
    assert {v: c["verdict"] for v, c in project.cells().items()} == {"1.0": "pass", "1.1": "not-run"}
    pid = int((project.folder / "started").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list((project.folder.parent / "tmp").iterdir()) == []


def test_a_reader_that_goes_away_costs_no_results(project: Project) -> None:
    project.write(SMALL)
    process = project.start("matrix", "--vary", "fakelib==1.0", "--json", "out.json", "--", "test_it.py")
    assert process.stderr
    process.stderr.close()
    assert process.wait(240) == 0
    assert project.cells()["1.0"]["verdict"] == "pass"


def test_each_pytest_has_temporary_folders_of_its_own(project: Project) -> None:
    project.write("[pytest]\naddopts = --basetemp=shared\n", "pytest.ini")
    project.write(
        "import pathlib, fakelib\n"
        "def test_it(tmp_path): pathlib.Path(f'where-{fakelib.VERSION}').write_text(str(tmp_path))\n"
    )
    done = project.memleak("matrix", "--vary", "fakelib==1.0,1.1", "--", "test_it.py", "--basetemp=other")
    assert done.returncode == 0, done.stdout + done.stderr
    places = {path.read_text() for path in project.folder.glob("where-*")}
    assert len(places) == 2
    assert all(place.startswith(str(project.folder.parent / "tmp")) for place in places)


def test_what_was_run_is_not_taken_if_a_test_has_changed(project: Project) -> None:
    call = ["matrix", "--vary", "fakelib==1.0,9.9", "--json", "out.json", "--", "test_it.py"]
    project.write("def test_it(): pass\n")
    project.memleak(*call)
    project.memleak(*call)
    assert project.cells()["1.0"]["stored"], "9.9 keeps it from being complete"
    project.memleak(*call[:-2], "--fresh", *call[-2:])
    assert not project.cells()["1.0"]["stored"]
    project.write("def test_it(): assert False\n")
    project.memleak(*call)
    cell = project.cells()["1.0"]
    assert (cell["verdict"], cell["stored"]) == ("fail", None)


def test_one_whose_set_up_broke_is_run_anew_and_its_other_tests_are_known(project: Project) -> None:
    project.write(
        "import os, pytest, fakelib\n"
        "@pytest.fixture\n"
        "def room():\n"
        "    if 'NO_ROOM' in os.environ: raise OSError('No space left on device')\n"
        "def test_it(): pass\n"
        "if fakelib.VERSION < (1, 1):\n"
        "    def test_old(room): pass\n"
    )
    call = ["matrix", "--vary", "fakelib==1.0,1.1", "--json", "out.json", "--", "test_it.py"]
    project.env["NO_ROOM"] = "1"
    project.memleak(*call)
    cells = {(cell["versions"]["fakelib"], cell["test"][-3:]): cell for cell in project.data()["cells"]}
    assert cells["1.0", "old"]["reason"] == "error in its set-up: OSError: No space left on device"
    assert cells["1.1", "old"]["reason"] == "it was not collected with these versions"
    del project.env["NO_ROOM"]
    project.memleak(*call)
    cells = {(cell["versions"]["fakelib"], cell["test"][-3:]): cell for cell in project.data()["cells"]}
    assert cells["1.0", "old"]["verdict"] == "pass"
    assert cells["1.1", "_it"]["stored"], "the first call was not complete"


def test_a_disk_that_is_full_is_told_for_its_cell_alone(project: Project, uv: str) -> None:
    wrapper = project.folder.parent / "uv"
    wrapper.write_text(
        f"""#!/bin/sh
case "$*" in *fakelib==1.1*)
    echo "error: Failed to install: fakelib-1.1-py3-none-any.whl" >&2
    echo "  Caused by: failed to copy file: No space left on device (os error 28)" >&2
    exit 2;;
esac
exec {uv} "$@"
"""
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    project.env["UV"] = str(wrapper)
    project.write(SMALL)
    done = project.memleak("matrix", "--vary", "fakelib==1.0,1.1", "--json", "out.json", "--", "test_it.py::test_any")
    assert done.returncode == 1
    cells = project.cells()
    assert cells["1.0"]["verdict"] == "pass"
    assert cells["1.1"]["verdict"] == "not-run"
    assert cells["1.1"]["reason"].startswith("no environment: the disk is full: Caused by: failed to copy file")


def test_a_uv_that_says_nothing_is_no_environment(project: Project, tmp_path: Path) -> None:
    wrapper = tmp_path / "uv"
    wrapper.write_text("#!/bin/sh\nexit 0\n")
    wrapper.chmod(0o755)
    project.env["UV"] = str(wrapper)
    done = project.memleak("matrix", "--vary", "fakelib==1.0", "--", "test_it.py")
    assert done.returncode == 1
    assert "no environment: uv's list of what it installed cannot be read: ''" in done.stderr
    project.env["UV"] = str(tmp_path / "gone")
    done = project.memleak("matrix", "--vary", "fakelib==1.0", "--", "test_it.py")
    assert done.returncode == 1
    assert f"no environment: {tmp_path}/gone cannot be run: No such file or directory" in done.stderr


def test_without_uv_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["matrix", "--vary", "fakelib==1.0", "--", "test_it.py"]) == 1
    assert "pip install 'pytest-memleak[matrix]'" in capsys.readouterr().err
