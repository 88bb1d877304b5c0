"""What benchmarks/downstream.py makes of the runs of other projects' tests. No project is run here."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks import downstream, downstream_outcomes, downstream_projects, downstream_sources
from benchmarks.downstream_alarms import Alarm, alarms, grouped
from benchmarks.downstream_outcomes import NOT_RUN, Changed, compared
from benchmarks.downstream_projects import Project
from benchmarks.downstream_runs import Runs, timed
from benchmarks.downstream_table import Measured, table
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.releases.sources import Sources

_PROJECT = Project("some-thing", "1.2", "", ("tests",))


def test_worst_part_of_a_test_is_its_outcome() -> None:
    lines = [
        "a\tsetup\tpassed\t",
        "a\tcall\tpassed\t",
        "a\tteardown\tfailed\tbroken\tfinalizer",
        "b\tsetup\tpassed\t",
        "b\tcall\tfailed\twhy",
        "b\tteardown\tpassed\t",
        "c\tsetup\tskipped\twhy",
        "c\tteardown\tpassed\t",
        "d.py\tcollect\tfailed\twhy",
    ]
    assert downstream_outcomes.read(lines) == {"a": "error", "b": "failed", "c": "skipped", "d.py": "error"}


def test_only_tests_that_end_alike_by_themselves_can_be_changed() -> None:
    once = {"same": "passed", "flaky": "passed", "gone": "passed"}
    found = compared([once, {"same": "passed", "flaky": "failed"}], [])
    assert found.flaky == ("flaky", "gone")
    assert found.counts == {"passed": 1}

    without = {"same": "passed", "breaks": "passed", "once": "skipped", "gone": "passed"}
    measured = [
        {"same": "passed", "breaks": "failed", "once": "skipped"},
        {"same": "passed", "breaks": "failed", "once": "passed", "new": "passed"},
    ]
    found = compared([without, without], measured)
    assert found.changed == (
        Changed("breaks", "passed", ("failed", "failed")),
        Changed("gone", "passed", (NOT_RUN, NOT_RUN)),
        Changed("new", NOT_RUN, (NOT_RUN, "passed")),
        Changed("once", "skipped", ("skipped", "passed")),
    )
    assert found.ran == 3
    assert str(found.changed[0]) == "breaks: passed without the plugin, failed and failed with it"


def _record(test: str, *results: CheckResult) -> TestRecord:
    return TestRecord(test, "test_it.py", 1, results=results)


def _leak(owner: str, count: int = 4096) -> CheckResult:
    return CheckResult("max_leak", "fail", "max_leak FAILED", measured=count, details=(f"  {owner}",), enforced=False)


def test_alarms_are_what_failed_or_was_not_seen_with_whoever_holds_it() -> None:
    records = [
        _record("a", _leak("4 KiB in 1 tensor: module global m.KEPT[0]")),
        _record("b", CheckResult("max_peak", "pass", "fine")),
        _record("c", CheckResult("baseline", "inconclusive", "a child process, pid 17, was not measured")),
        _record("d", _leak("8 KiB in 2 tensors: module global m.KEPT[0]", 8192)),
        _record("e", CheckResult("max_peak", "not judged", "the body failed first")),
    ]
    found = alarms(records)
    assert [(one.test, one.check, one.bytes) for one in found] == [
        ("a", "max_leak", 4096),
        ("c", "baseline", None),
        ("d", "max_leak", 8192),
    ]
    assert found[0].why == "4 KiB in 1 tensor: module global m.KEPT[0]"
    assert [(example.test, len(group)) for example, group in grouped(found)] == [("a", 1), ("c", 1), ("d", 1)]
    same = [*found, Alarm("f", "max_leak", "fail", 12, "12 B in 1 tensor: module global m.KEPT[3]")]
    assert [(example.test, len(group)) for example, group in grouped(same)] == [("a", 2), ("c", 1), ("d", 1)]


def test_table_tells_ratios_changes_and_alarms() -> None:
    tests = {f"t{number}": "passed" for number in range(3)}
    comparison = compared([tests, tests], [tests, tests | {"t1": "failed"}])
    held = Alarm("t2", "max_leak", "fail", 4096, "module global m.KEPT")
    one = Measured(_PROJECT, comparison, (held,), (10.0, 15.0), (8.0, 10.0), (), {"torch": "2.13.0"})
    assert not one.fine
    text = table([one], ["head"])
    assert "| some-thing | 1.2 | 3 | 0 | 0 | 0 | 0 | 1 | × 1.50 | × 1.25 | 5 |" in text
    assert "- changed: t1: passed without the plugin, passed and failed with it" in text
    assert "- max_leak fail, 1 test: module global m.KEPT\n  - `t2`, 4 KiB" in text
    assert Measured(_PROJECT, compared([tests], [tests]), (held,), (1, 1), (1, 1), (), {}).fine
    assert not Measured(_PROJECT, compared([tests], [tests]), (), (1, 1), (1, 1), ("ended by SIGTERM",), {}).fine


def test_projects_of_the_table_can_be_read_and_named() -> None:
    projects = downstream_projects.read()
    assert [one.name for one in downstream_projects.chosen(projects, ["peft"])] == ["peft"]
    assert downstream_projects.chosen(projects, []) == projects
    with pytest.raises(BadInput, match=r"--projects: nonesuch is not in downstream.toml, which has .*peft"):
        downstream_projects.chosen(projects, ["nonesuch"])
    assert all(len(one.sha256) == 64 and one.tests for one in projects)


def test_table_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    path = tmp_path / "downstream.toml"
    path.write_text('[[project]]\nname = "a"\nversion = 1\nsha256 = ""\ntests = ["t"]\n')
    with pytest.raises(BadInput, match=r"downstream.toml: project\[0\].version is 1, and has to be a text"):
        downstream_projects.read(path)


def test_what_is_left_out_becomes_arguments() -> None:
    project = Project("a", "1", "", ("tests",), arguments=("-k", "x"), left_out={"tests/a.py": "", "tests/b.py::c": ""})
    assert project.pytest_arguments() == ["-k", "x", "--ignore=tests/a.py", "--deselect=tests/b.py::c", "tests"]


def _sdist(folder: Path, *files: str) -> str:
    archive = folder / "some_thing-1.2.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        for file in files:
            made.addfile(tarfile.TarInfo(f"some_thing-1.2/{file}"), io.BytesIO())
    return hashlib.sha256(archive.read_bytes()).hexdigest()


def no_uv() -> str:
    pytest.fail("nothing is to be fetched")


def test_source_distribution_is_unpacked_with_what_it_lacks(tmp_path: Path) -> None:
    sha256 = _sdist(tmp_path, "py/tests/test_it.py", "py/tests/conftest.py")
    read = Project(
        *("some-thing", "1.2", sha256, ("tests",)),
        conftests=("py/tests/conftest.py",),
        folder="py",
        packages=("tests",),
        folders=("data",),
    )
    start = downstream_sources.unpacked(read, tmp_path / "out", tmp_path, no_uv, Sources())
    assert start == tmp_path / "out" / "some_thing-1.2" / "py"
    assert (start / "tests" / "__init__.py").is_file()
    assert (start / "data").is_dir()


def test_conftests_that_nobody_read_and_other_archives_are_refused(tmp_path: Path) -> None:
    sha256 = _sdist(tmp_path, "tests/conftest.py")
    unread = Project("some-thing", "1.2", sha256, ("tests",))
    with pytest.raises(BadInput, match=r"some-thing==1.2: tests/conftest.py would run with its tests"):
        downstream_sources.unpacked(unread, tmp_path / "out", tmp_path, no_uv, Sources())
    other = Project("some-thing", "1.2", "0" * 64, ("tests",))
    with pytest.raises(BadInput, match=rf"has the sha256 {sha256}, and downstream.toml says 000"):
        downstream_sources.unpacked(other, tmp_path / "out", tmp_path, no_uv, Sources())


@pytest.mark.parametrize(("alone", "started"), [("", 8), ("they write to the same files", 0)])
def test_tests_that_disturb_each_other_run_without_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], alone: str, started: int
) -> None:
    sha256 = _sdist(tmp_path, "tests/test_it.py")
    monkeypatch.setattr(Runs, "all", lambda runs: runs)
    monkeypatch.setattr(downstream, "measured", lambda runs, versions: runs)
    monkeypatch.setattr(downstream, "_here", lambda project: {})
    monkeypatch.setattr(downstream, "find_uv", no_uv)
    monkeypatch.setattr(sys, "argv", ["downstream.py", "--here", "-n", "8", "--sdists", str(tmp_path)])
    project = Project("some-thing", "1.2", sha256, ("tests",), alone=alone)
    runs: Any = downstream._run(project, tmp_path / "out", downstream._options())
    assert runs.workers == started
    assert (f"some-thing: without workers: {alone}" in capsys.readouterr().err) is bool(alone)


def test_address_of_a_source_distribution_is_the_locks() -> None:
    locked = {"name": "some-thing", "sdist": {"url": "https://host/some_thing-1.2.tar.gz"}}
    assert downstream_sources.sdist_address([locked], _PROJECT) == "https://host/some_thing-1.2.tar.gz"
    with pytest.raises(Unavailable, match=r"some-thing==1.2: the index has no source distribution of it"):
        downstream_sources.sdist_address([{"name": "some-thing"}], _PROJECT)


def test_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    endless = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)"
    status, _, _ = timed([sys.executable, "-c", endless], tmp_path, {}, log, timeout=0.3)
    assert status == -15
    status, seconds, processor = timed([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, {}, log, timeout=60)
    assert status == 3
    assert seconds > 0
    assert processor > 0
