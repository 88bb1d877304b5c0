"""`--memleak-snapshots`, with a stand-in for the history that only CUDA has. On a card: tests/gpu/test_snapshots.py."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.events import cuda_history
from pytest_memleak.events.cuda_history import CudaRecording
from pytest_memleak.hooks.snapshots import file_name
from tests.conftest import Records, Run

_TESTS = """
    import pytest, torch

    @pytest.mark.max_peak("4MiB")
    @pytest.mark.parametrize("size", [1, 8], ids=["small", "../large"])
    def test_it(size):
        torch.ones(size * 1024**2, dtype=torch.uint8)
"""
SNAPSHOT: dict[str, Any] = {"segments": [], "device_traces": [[]]}


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_history, "snapshot", lambda: SNAPSHOT)


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("history")
def test_each_test_has_a_file_and_its_name_is_told(
    pytester: pytest.Pytester, run_on_cpu: Run, records: Records
) -> None:
    result = run_on_cpu(
        _TESTS, "--memleak-explain=always", "--memleak-snapshots=shots/new", "--memleak-json=out.json", "-v"
    )
    result.assert_outcomes(passed=1, failed=1)
    names = saved(pytester.path / "shots" / "new")
    assert names == [file_name("test_it.py::test_it[../large]"), file_name("test_it.py::test_it[small]")]
    assert [pickle.loads((pytester.path / "shots" / "new" / name).read_bytes()) for name in names] == [SNAPSHOT] * 2
    text = " ".join(result.stdout.str().split())
    assert f"memory snapshot for https://pytorch.org/memory_viz: shots/new/{names[0]} what to do:" in text
    assert "2 memory snapshots in shots/new: open them at https://pytorch.org/memory_viz" in text
    (note,) = records()["test_it[small]"]["notes"]
    assert note == f"memory snapshot for https://pytorch.org/memory_viz: shots/new/{names[1]}"


def test_of_a_second_run_the_first_one_tells(
    pytester: pytest.Pytester, run_on_cpu: Run, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = iter([None, SNAPSHOT])
    monkeypatch.setattr(cuda_history, "snapshot", lambda: next(recorded))
    run_on_cpu(_TESTS, "--memleak-explain=rerun", "--memleak-snapshots=shots", "--memleak-json=out.json", "-k", "large")
    (note,) = records()["test_it[../large]"]["notes"]
    assert (pytester.path / note.rpartition(" ")[2]).is_file()


@pytest.mark.usefixtures("history")
def test_a_snapshot_that_cannot_be_written_fails_no_test(
    run_on_cpu: Run, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_memleak.hooks.snapshots.file_name", lambda nodeid: "x" * 300)
    result = run_on_cpu(
        _TESTS, "--memleak-explain=always", "--memleak-snapshots=shots", "--memleak-json=out.json", "-k", "small"
    )
    result.assert_outcomes(passed=1, deselected=1)
    (note,) = records()["test_it[small]"]["notes"]
    assert note.startswith("memory snapshot not saved: ")


def test_without_cuda_nothing_is_written_and_one_line_says_so(pytester: pytest.Pytester, run_both_ways: Run) -> None:
    result = run_both_ways(_TESTS, "--memleak-explain=always", "--memleak-snapshots=shots")
    result.assert_outcomes(passed=1, failed=1)
    said = "no memory snapshots: torch takes them of CUDA devices, and no measured test ran on one"
    assert result.stdout.str().count(said) == 1
    assert not (pytester.path / "shots").exists()


@pytest.mark.parametrize("explain", ["auto", "never", None])
def test_where_nothing_is_recorded_it_is_a_usage_error(run_on_cpu: Run, explain: str | None) -> None:
    arguments = [f"--memleak-explain={explain}"] if explain else []
    result = run_on_cpu(_TESTS, "--memleak-snapshots=shots", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--memleak-snapshots*--memleak-explain=always*rerun*"])


def test_a_folder_that_cannot_be_is_a_usage_error(run_on_cpu: Run) -> None:
    result = run_on_cpu(_TESTS, "--memleak-explain=always", "--memleak-snapshots=test_it.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--memleak-snapshots: *test_it.py*cannot be written*"])


def test_names_are_allowed_everywhere_and_differ() -> None:
    nodeids = [
        "a.py::test[x/y]",
        "a.py::test[x:y]",
        "a.py::test[x\ud800y]",
        f"a.py::test[{'é' * 500}]",
        "..",
        "a" * 500,
    ]
    names = [file_name(nodeid) for nodeid in nodeids]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.isascii()
        assert len(name) < 150
        assert not set(name) & set('/\\:*?"<>| ')
        assert not name.startswith(".")


def test_one_is_taken_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's takes a fifth of a second: what reads a peak and what is saved are one, until the test goes on."""
    taken: list[dict[str, Any]] = []

    def take() -> dict[str, Any]:
        taken.append({"segments": [], "device_traces": [[], []]})
        return taken[-1]

    monkeypatch.setattr(torch.cuda.memory, "_snapshot", take)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **arguments: None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert cuda_history.snapshot() is None
    recordings = [CudaRecording(0), CudaRecording(1)]
    for recording in recordings:
        recording.begin(0)
    for recording in recordings:
        recording.pause()
    assert cuda_history.snapshot() is taken[0]
    for recording in recordings:
        recording.read()
    assert len(taken) == 1
    for recording in recordings:
        recording.resume()
        recording.read()
    assert len(taken) > 1
    for recording in recordings:
        recording.end()
    assert cuda_history.snapshot() is None
