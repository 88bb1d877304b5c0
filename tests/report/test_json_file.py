from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pytest_memleak.budget.term import Term
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.records.baselines import Entry, Key
from pytest_memleak.records.baselines.ratchet import Difference, Findings
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.records.baselines.told import Told
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import Block, CardInfo, CheckResult, Limit, TestRecord
from pytest_memleak.records.run import RunInfo, versions
from pytest_memleak.report.files import check_writable
from pytest_memleak.report.json_file import document, write

ENTRY = Entry(Key("a.py::t[ü\ud800]", "simulated", "NVIDIA-H200:5", "2.13"), {}).with_peaks({"cuda:0": 3})
BASELINE = Told(
    Terms(Path("a.txt"), "a.txt", "ini", update=frozenset(["new"])),
    entries=2,
    is_there=True,
    compared=2,
    above=1,
    found=Findings(
        missing=(ENTRY,),
        higher=(Difference(ENTRY, ENTRY.with_peaks({"cuda:0": 9})),),
        lower=(Difference(ENTRY, ENTRY.with_peaks({"cuda:0": 1})),),
        unused=(ENTRY,),
    ),
    written=True,
)
RUN = RunInfo(
    started="2025-01-02T03:04:05+00:00",
    finished="2025-01-02T03:05:05+00:00",
    args=("-n", "2", "tests"),
    mode="enforce",
    backend="auto",
    exit_status=1,
    cap=16 * 1024**3,
    versions=versions(),
)


def collected() -> Collected:
    limit = Limit("fp16_size", 200, "a.py:1 @max_peak", (Term("fp16_size", 200, "100 parameters × 2 B of Tiny"),))
    card = CardInfo("cpu", "CPU", ("cpu",), 1000, cap=500, enforcement="enforced on CPU tensors")
    failed = CheckResult(
        "max_peak",
        "fail",
        "max_peak FAILED: …",
        "cpu",
        "allocated",
        "measured",
        300,
        10,
        limit,
        details=("body: 300 B",),
        advice="less",
    )
    found = Collected()
    found.add(
        TestRecord(
            "b.py::t[ü\ud800]",
            "b.py",
            3,
            card=card,
            results=(failed,),
            blocks=(Block("load", "cpu", "allocated", "measured", 5, -2),),
            worker="gw1",
            attempt=2,
            notes=("folded one reset",),
            duration=0.5,
        )
    )
    leak = CheckResult("max_leak", "pass", "…", "cpu", "allocated", "measured", -7, limit=Limit("0", 0, "ini"))
    higher = CheckResult("baseline", "fail", "…", "cuda:0", "allocated", "predicted", 9, recorded=3)
    found.add(TestRecord("a.py::t", "a.py", 1, results=(leak, higher), worker="gw0", baseline=ENTRY))
    found.add(TestRecord("c.py::unasked", "c.py", 1, worker="gw0"))
    found.worker_fell_silent("gw2")
    return found


def schema() -> dict[str, Any]:
    text = resources.files("pytest_memleak.records").joinpath("schema-1.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def closed(node: Any) -> Any:
    """The schema with no room for fields it does not name: what is written and what is documented are one."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    found = {name: closed(value) for name, value in node.items()}
    if "properties" in found and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize("baseline", [None, BASELINE, replace(BASELINE, narrowed="-k")])
def test_what_is_written_fits_the_shipped_schema_exactly(tmp_path: Path, baseline: Told | None) -> None:
    path = tmp_path / "memleak.json"
    write(path, document(collected(), RUN, baseline))
    data = json.loads(path.read_text(encoding="ascii"))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.Draft202012Validator(closed(schema())).validate(data)


@pytest.mark.parametrize("change", [("schema", "pytest-memleak/2"), ("totals", {}), ("tests", [{"nodeid": "a"}])])
def test_the_schema_refuses_what_is_not_such_a_document(change: tuple[str, Any]) -> None:
    data = json.loads(json.dumps(document(collected(), RUN))) | dict([change])
    assert not jsonschema.Draft202012Validator(schema()).is_valid(data)


def test_the_document_is_sorted_and_has_totals_for_the_run_and_each_worker() -> None:
    data = document(collected(), RUN)
    assert [test["nodeid"] for test in data["tests"]] == ["a.py::t", "b.py::t[ü\ud800]", "c.py::unasked"]
    assert [test["verdict"] for test in data["tests"]] == ["fail", "fail", None]
    assert (data["totals"]["passed"], data["totals"]["failed"], data["totals"]["reruns"]) == (0, 2, 1)
    assert data["workers"]["gw0"]["tests"] == 2
    assert data["workers"]["gw1"]["highest_peaks"][0]["bytes"] == 300
    assert data["silent_workers"] == ["gw2"]
    assert data["run"]["cap"] == 16 * 1024**3


def test_a_record_comes_back_from_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "memleak.json"
    write(path, document(collected(), RUN))
    read = [TestRecord.from_json(test) for test in json.loads(path.read_text(encoding="ascii"))["tests"]]
    assert read == list(collected())


def test_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "memleak.json"
    assert check_writable(path) == path
    assert list(tmp_path.iterdir()) == []
    write(path, {"a": 1})
    assert [entry.name for entry in path.parent.iterdir()] == ["memleak.json"]
    assert json.loads(path.read_text(encoding="ascii")) == {"a": 1}


def test_asking_whether_it_can_be_written_leaves_an_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "memleak.json"
    path.write_text("old")
    check_writable(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def file_in_the_way(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("")
    return file


@pytest.mark.parametrize("below", ["report.json", "deeper/report.json"])
def test_a_path_below_a_file_is_refused_with_the_reason(file_in_the_way: Path, below: str) -> None:
    path = file_in_the_way / below
    with pytest.raises(BadInput, match="cannot be written") as caught:
        check_writable(path)
    assert str(path) in str(caught.value)
    assert "ot a directory" in str(caught.value)
    with pytest.raises(Unavailable, match="could not be written"):
        write(path, {})


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(BadInput, match="does not name a file"):
        check_writable(f"{tmp_path}/new/")
    with pytest.raises(BadInput, match="does not name a file"):
        check_writable("")


def test_a_device_or_pipe_is_refused_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/null")):
        with pytest.raises(BadInput, match="ordinary file"):
            check_writable(path)
        with pytest.raises(BadInput, match="ordinary file"):
            write(path, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_names_the_system_cannot_have_are_refused(tmp_path: Path) -> None:
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(BadInput, match="cannot be written"):
            check_writable(tmp_path / name)
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(BadInput, match="cannot be written"):
        check_writable(circle / "a.json")


def test_a_link_stays_a_link_and_the_file_behind_it_is_written(tmp_path: Path) -> None:
    behind = tmp_path / "behind.json"
    link = tmp_path / "link.json"
    link.symlink_to(behind)
    assert check_writable(link) == behind
    write(link, {"a": 1})
    assert link.is_symlink()
    assert json.loads(behind.read_text()) == {"a": 1}


def test_the_file_may_be_read_by_whoever_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_cut_short_leaves_the_old_file_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, failure: BaseException
) -> None:
    path = tmp_path / "memleak.json"
    path.write_text("old")

    def fail(*arguments: object) -> None:
        raise failure

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((Unavailable, KeyboardInterrupt)) as caught:
        write(path, {"new": 1})
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_document_that_is_no_json_does_not_touch_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "memleak.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write(path, {"duration": float("nan")})
    assert path.read_text() == "old"


def test_readers_see_one_whole_document_or_another_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "memleak.json"
    write(path, {"version": 0})

    def versions_read() -> Iterator[int]:
        for version in range(1, 20):
            with path.open() as opened:  # opened before the replacement, read after it
                write(path, {"version": version, "filler": "x" * 10_000})
                yield json.load(opened)["version"]

    assert list(versions_read()) == list(range(19))


def test_the_path_stays_where_it_was_when_the_working_directory_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_writable("memleak.json") == tmp_path / "memleak.json"
