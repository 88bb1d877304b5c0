"""Several processes and one baseline: xdist's workers, a killed one, ranks, and two runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hooks.baselines import FILE, MIB, NAMES, START, SUITE, TO_THE_BYTE, peaks

ARGS = ("--gpu-backend=cpu", *TO_THE_BYTE)


def test_two_workers_write_and_judge_as_one_process_does(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(test_it=SUITE)
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=new").assert_outcomes(passed=6)
    serial = (pytester.path / FILE).read_bytes()
    (pytester.path / FILE).unlink()
    # A worker's group of tests is a part of their ids, which is not to get into the file.
    grouped = SUITE.replace("def test_a", '@pytest.mark.xdist_group("g")\ndef test_a')
    pytester.makepyfile(test_it=grouped)
    args = ("-n", "2", "--dist=loadgroup", *ARGS)
    pytester.runpytest_subprocess(*args, "--memleak-update=new").assert_outcomes(passed=6)
    assert (pytester.path / FILE).read_bytes() == serial
    monkeypatch.setenv("A", "2")
    (pytester.path / "test_it.py").write_text(grouped.replace("def test_b", "def test_new"))
    result = pytester.runpytest_subprocess(*args, "--memleak-update=trim")
    result.assert_outcomes(failed=1, passed=5)
    result.stdout.fnmatch_lines([f"baseline {FILE}: 4 tests compared with 5 entries, 1 above; written: 1 removed"])
    assert sorted(peaks(pytester.path)) == sorted(set(NAMES) - {"test_b"})
    result = pytester.runpytest_subprocess(*args, "--memleak-update=trim", "-k", "nothing or new")
    assert len(peaks(pytester.path)) == 4


def test_of_a_killed_worker_nothing_is_lost(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    killed = f"{START}\nimport signal\n@pytest.mark.parametrize('n', range(4))\ndef test_a(n): fill('A')\n"
    killed += "def test_killed():\n    if os.environ.get('KILL'): os.kill(os.getpid(), signal.SIGKILL)\n    fill('A')\n"
    pytester.makepyfile(test_it=killed)
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=new").assert_outcomes(passed=5)
    before = (pytester.path / FILE).read_bytes()
    os.environ["KILL"] = "1"
    try:
        args = ("-n", "1", "--max-worker-restart=0", *ARGS)
        result = pytester.runpytest_subprocess(*args, "--memleak-update=all")
        assert (pytester.path / FILE).read_bytes() == before  # neither the killed test's nor anyone's entry is unused
        (pytester.path / FILE).unlink()
        result = pytester.runpytest_subprocess(*args, "--memleak-update=all")
    finally:
        del os.environ["KILL"]
    result.assert_outcomes(passed=4, failed=1)
    assert sorted(peaks(pytester.path)) == [f"test_a[{number}]" for number in range(4)]


def test_two_runs_at_once_lose_nothing(pytester: pytest.Pytester) -> None:
    """Each waits, before it writes, until both have read the file as it was in the beginning."""
    pytester.makeconftest(
        """
        import os, pathlib, time
        def pytest_sessionstart():
            pathlib.Path(os.environ["ME"]).touch()
        def pytest_runtest_teardown():
            until = time.monotonic() + 300
            while not pathlib.Path(os.environ["OTHER"]).exists():
                assert time.monotonic() < until
                time.sleep(0.01)
        """
    )
    names = ("one", "two")
    runs = []
    for name, other in zip(names, reversed(names), strict=True):
        folder = pytester.mkdir(name)
        Path(folder, f"test_{name}.py").write_text(f"{START}\ndef test_{name}(): fill('A')\n")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", name, *ARGS, "--memleak-update=all"]
        environment = os.environ | {"ME": f"{name}.began", "OTHER": f"{other}.began"}
        runs.append(subprocess.Popen(command, cwd=pytester.path, env=environment, stdout=subprocess.DEVNULL))
    assert [run.wait(600) for run in runs] == [0, 0]
    assert peaks(pytester.path) == {"test_one": MIB, "test_two": MIB}
    assert not [path for path in pytester.path.iterdir() if "lock" in path.name or "tmp" in path.name]


def test_each_rank_has_a_peak_of_its_own(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    body = f"{START}\n@pytest.mark.ranks(2)\ndef test_ranks(): fill('R' + os.environ['RANK'])\n"
    pytester.makepyfile(test_it=body)
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=new").assert_outcomes(passed=1)
    line = (pytester.path / FILE).read_text().splitlines()[-1]
    assert line.endswith(f" peak(cpu,rank=0)={MIB} peak(cpu,rank=1)={MIB}")
    monkeypatch.setenv("R1", "3")
    result = pytester.runpytest_subprocess(*ARGS)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*rank 1*", "*baseline FAILED: peak 3 MiB > recorded 1 MiB: +2 MiB*"])
    pytester.runpytest_subprocess(*ARGS, "--memleak-update=raise").assert_outcomes(passed=1)
    line = (pytester.path / FILE).read_text().splitlines()[-1]
    assert line.endswith(f" peak(cpu,rank=0)={MIB} peak(cpu,rank=1)={3 * MIB}")
