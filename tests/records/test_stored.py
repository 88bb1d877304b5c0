"""A stored run is read as it was written, by this release or a later one; whatever else the file is, that is said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.records.stored import read
from pytest_memleak.report.json_file import document, write
from tests.report.test_json_file import BASELINE, RUN, collected

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def written() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(document(collected(), RUN, BASELINE)))
    return data


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "memleak.json"
    write(path, document(collected(), RUN, BASELINE))
    stored = read(path)
    assert [one.nodeid for one in stored.tests] == [one.nodeid for one in collected()]
    assert [one.results for one in stored.tests] == [one.results for one in collected()]
    assert [one.card for one in stored.tests] == [one.card for one in collected()]
    assert stored.totals == collected().totals()
    assert stored.run == RUN
    assert stored.baseline is not None
    assert stored.baseline.path == BASELINE.terms.shown
    assert [one.test for one in stored.baseline.higher] == [one.before.key.test for one in BASELINE.found.higher]


def test_what_a_later_release_adds_is_left_out_and_what_an_earlier_one_lacks_is_none(
    tmp_path: Path, written: dict[str, Any]
) -> None:
    path = tmp_path / "memleak.json"
    older = copy.deepcopy(written)
    del older["baseline"], older["tests"][0]["ranks"], older["tests"][0]["results"][0]["recorded"]
    newer = copy.deepcopy(written)
    newer["moon"] = newer["tests"][0]["moon"] = newer["tests"][0]["results"][0]["moon"] = newer["totals"]["moon"] = [1]
    for data in (older, newer):
        path.write_text(json.dumps(data))
        assert [one.verdict for one in read(path).tests] == [one.verdict for one in collected()]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", r"is no JSON"),
        (b'{"schema": "pytest-memleak/1", "tests": [', r"is no JSON \(.*line 1"),
        (b"\xff\xfe", r"cannot be read \(.*utf-8"),
        (b"[" * 100_000, r"is no JSON"),
        (b"1" * 5000, r"schema is None|is no JSON"),
        (b'{"schema": NaN}', r"NaN is not a number in JSON"),
        (b"[]", r"schema is None.*give the file of --memleak-json"),
        (b'{"schema": "pytest-memleak-matrix/1"}', r"'pytest-memleak-matrix/1'.*give the file of --memleak-json"),
        (
            b'{"schema": "pytest-memleak/2"}',
            r"'pytest-memleak/2', and this release reads 'pytest-memleak/1': use the r",
        ),
        (b'{"schema": "pytest-memleak/1"}', r"the document has no 'run'"),
    ],
)
def test_what_is_no_such_document_is_refused_with_the_reason(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "memleak.json"
    path.write_bytes(text)
    with pytest.raises(BadInput, match=said) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(BadInput, match=f"cannot be read .*{said}"):
            read(path)


def wrong_test(data: dict[str, Any]) -> None:
    data["tests"][1]["results"][0]["measured"] = "many"


def wrong_verdict(data: dict[str, Any]) -> None:
    data["tests"][0]["results"][0]["verdict"] = "perhaps"


def wrong_number(data: dict[str, Any]) -> None:
    data["totals"]["failed"] = True


def lost_field(data: dict[str, Any]) -> None:
    del data["tests"][0]["results"][0]["message"]


def wrong_list(data: dict[str, Any]) -> None:
    data["tests"] = {"a": 1}


def wrong_entry(data: dict[str, Any]) -> None:
    data["tests"][2] = None


def wrong_versions(data: dict[str, Any]) -> None:
    data["run"]["versions"] = {"torch": 2}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wrong_test, r"tests\[1\]\.results\[0\]\.measured is 'many', and has to be a whole number"),
        (wrong_verdict, r"tests\[0\]\.results\[0\]\.verdict is 'perhaps', and has to be 'pass' or 'fail'"),
        (wrong_number, r"totals\.failed is True, and has to be a whole number"),
        (lost_field, r"tests\[0\]\.results\[0\] has no 'message'"),
        (wrong_list, r"tests is .*, and has to be a list"),
        (wrong_entry, r"tests\[2\] is None, and has to be an object"),
        (wrong_versions, r"run\.versions\.torch is 2, and has to be a text"),
    ],
)
def test_a_document_that_was_changed_is_refused_with_the_place(
    tmp_path: Path, written: dict[str, Any], change: Change, said: str
) -> None:
    change(written)
    path = tmp_path / "memleak.json"
    path.write_text(json.dumps(written))
    with pytest.raises(BadInput, match=said):
        read(path)
