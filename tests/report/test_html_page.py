"""What is in the page's file. What a browser makes of it: test_html_browser.py."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
from dataclasses import replace
from importlib import metadata
from itertools import accumulate
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.records.collected import Collected
from pytest_memleak.records.record import AtPeak, CheckResult, TestRecord
from pytest_memleak.report import html
from pytest_memleak.report.html.data import _LARGEST, verdict_word
from pytest_memleak.report.html.plotly import find_plotly
from pytest_memleak.wording import SNAPSHOT
from tests.report.pages import CPU, MIB, RUN, collected, evil, peak, read, timeline, written

pytest.importorskip("plotly", reason='needs plotly: pip install "plotly>=6"')


def test_tests_texts_are_data_and_nothing_else(tmp_path: Path) -> None:
    parsed = read(written(tmp_path))
    data = parsed.data()
    assert {test["nodeid"] for test in data["overview"]["tests"]} == {record.nodeid for record in collected()}
    number = next(n for n, test in enumerate(data["overview"]["tests"]) if test["nodeid"] == evil().nodeid)
    assert data[f"test-{number}"]["results"][0]["message"] == evil().results[0].message
    assert data["overview"]["silent"] == ["gw7"]
    # Nothing that they hold is an element: what there is, the page itself brings.
    assert parsed.elements == read(written(tmp_path, Collected())).elements
    assert len(parsed.found) == len(collected()) + 3


def test_only_what_the_page_brings_may_run_and_nothing_may_be_fetched(tmp_path: Path) -> None:
    parsed = read(written(tmp_path))
    scripts = [text for attributes, text in parsed.found if not attributes]
    assert len(scripts) == 1
    for script in (*scripts, find_plotly().read_text(encoding="utf-8")):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in parsed.policy
    policy = dict(part.strip().split(" ", 1) for part in parsed.policy.split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert "unsafe" not in policy["script-src"]
    text = re.sub(r'(?s)<script type="application/json".*?</script>', "", written(tmp_path).read_text("utf-8"))
    assert re.findall(r"https?://|//\w+\.\w+", text) == []


def test_a_curve_comes_back_to_the_byte(tmp_path: Path) -> None:
    records = Collected()
    curve = replace(timeline(), bytes=(7, 4096, 123_456_789, 12, 0), seconds=(0.0, 0.1, 0.25, 60.0, 61.5))
    records.add(TestRecord("t", "t.py", 1, CPU, (peak("pass", 1, 2),), timelines=(curve,)))
    (told,) = read(written(tmp_path, records)).data()["test-0"]["timelines"]
    assert [told["unit"] * count for count in accumulate(told["bytes"])] == list(curve.bytes)
    seconds = [told["step"] * step for step in accumulate(told["seconds"])]
    assert seconds == pytest.approx(curve.seconds, abs=61.5 / 10_000)


def test_lines_that_tests_share_are_told_once_and_the_small_ones_in_one_sum(tmp_path: Path) -> None:
    alive = tuple(AtPeak(MIB * (200 - n), 2, f"lib/model.py:{n}", "a.py:1") for n in range(100))
    result = CheckResult(**vars(peak("pass", 1, 2)) | {"at_peak": alive})
    records = Collected()
    for name in ("one", "two"):
        records.add(TestRecord(name, "t.py", 1, CPU, (result,)))
    path = written(tmp_path, records)
    assert path.read_text("utf-8").count("lib/model.py:17") == 1
    groups = read(path).data()["test-1"]["results"][0]["alive"]
    assert len(groups) == _LARGEST + 1
    assert sum(group[0] for group in groups) == sum(one.bytes for one in alive)
    assert groups[-1] == [sum(one.bytes for one in alive[_LARGEST:]), 2 * (100 - _LARGEST), _LARGEST - 100]


@pytest.mark.parametrize(
    ("results", "word"),
    [
        ((), "not asked"),
        ((peak("fail", 2, 1),), "failed"),
        ((replace(peak("fail", 2, 1), enforced=False),), "would fail"),
        ((replace(peak("pass", 2, 1), enforced=False),), "read"),
        ((replace(peak("inconclusive", 2, 1), enforced=False),), "inconclusive"),
        ((peak("not judged", 2, 1), peak("pass", 1, 1)), "not judged"),
    ],
)
def test_verdicts_in_words(results: tuple[CheckResult, ...], word: str) -> None:
    assert verdict_word(TestRecord("t", "t.py", 1, results=results)) == word


def test_what_was_not_enforced_is_told_as_it_would_be_printed(tmp_path: Path) -> None:
    records = Collected()
    records.add(TestRecord("t", "t.py", 1, CPU, (replace(peak("fail", 2, 1), enforced=False),)))
    assert "fp16_size = 1 B" in read(written(tmp_path, records)).data()["test-0"]["text"]


def test_a_snapshot_is_linked_from_where_the_page_is(tmp_path: Path) -> None:
    records = Collected()
    for note in ("shots/a b#1.pickle", "javascript:x.pickle"):
        records.add(TestRecord(note, "t.py", 1, CPU, notes=(SNAPSHOT + note,)))
    path = tmp_path / "out" / "memleak.html"
    html.write(path, records, RUN, tmp_path)
    data = read(path).data()
    links = [data[f"test-{number}"]["notes"][0][2] for number in range(2)]
    assert links == ["./../javascript%3Ax.pickle", "./../shots/a%20b%231.pickle"]


def test_plotly_is_found_without_being_imported() -> None:
    assert find_plotly().stat().st_size > 1_000_000


@pytest.mark.parametrize(("there", "said"), [(False, "is not installed"), (True, "5.9 is too old")])
def test_without_a_plotly_the_message_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, there: bool, said: str
) -> None:
    spec = importlib.util.find_spec("plotly")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if there else None)
    monkeypatch.setattr(metadata, "version", lambda name: "5.9")
    with pytest.raises(Unavailable, match=said) as caught:
        find_plotly()
    assert 'pip install "plotly>=6"' in str(caught.value)
