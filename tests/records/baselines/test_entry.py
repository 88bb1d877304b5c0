from __future__ import annotations

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.records.baselines.entry import Entry, Key, card_of, minor_of, parse_line, place_of

ENTRY = Entry(Key("test_a.py::test_x", "simulated", "NVIDIA-H200", "2.13"), {"peak(cuda:0)": 1024})
LINE = "test_a.py::test_x simulated NVIDIA-H200 torch-2.13 peak(cuda:0)=1024"


def test_a_line_is_what_a_person_can_read() -> None:
    assert ENTRY.line() == LINE
    assert parse_line(LINE) == ENTRY


@pytest.mark.parametrize(
    "nodeid",
    [
        "a.py::t[a b]",
        "a.py::t[ ]",
        "a.py::t[a  b] ",
        "a.py::t[\n\r\t\v\f\0\x7f]",
        "a.py::t[é☃😀\u2028\x85]",
        "a.py::t[\ud800]",
        r"a.py::t[\n]",
        "a.py::t[\\]",
        "#a.py::t",
        "<<<<<<< a",
        "a.py::t[peak(cuda:0)=1]",
        "torch-2.13",
    ],
)
def test_any_node_id_is_one_line_of_printable_ascii_and_comes_back(nodeid: str) -> None:
    entry = Entry(ENTRY.key._replace(test=nodeid), ENTRY.values)
    line = entry.line()
    assert line.isascii()
    assert line.isprintable()
    assert not line.startswith("#")
    assert line.count(" ") == 4
    assert parse_line(line) == entry


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no entry"),
        ("test_a.py::test_x", "no entry"),
        ("test_a.py::test_x simulated NVIDIA-H200 torch-2.13", "no entry"),
        ("test_a.py::test_x simulated NVIDIA-H200 2.13 peak(cuda:0)=1", "no entry"),
        ("test_a.py::test_x  simulated NVIDIA-H200 torch-2.13 peak(cuda:0)=1", "no entry"),
        (LINE + " ", "'' is no value"),
        (LINE + " peak(cuda:0)=7", r"says peak\(cuda:0\) twice"),
        (LINE.replace("1024", "1 024"), "'024' is no value"),
        (LINE.replace("1024", "01024"), "is no value"),
        (LINE.replace("1024", "-1"), "is no value"),
        (LINE.replace("1024", "1e3"), "is no value"),
        (LINE.replace("1024", "9" * 30), "is no value"),
        (LINE.replace("peak(cuda:0)", "peak"), "is no value"),
        (LINE.replace("test_x", r"test_\x"), "a backslash begins an escape"),
        (LINE.replace("test_x", r"test_\x41"), "a backslash begins an escape"),
        (LINE.replace("test_x", "test_\xe9"), "a backslash begins an escape"),
        (LINE.replace("test_x", "test\tx"), "a backslash begins an escape"),
        (LINE.replace("simulated", "simu\0lated"), "a backslash begins an escape"),
    ],
)
def test_what_is_no_entry_is_refused_with_what_is_wrong(line: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        parse_line(line)


def test_measures_of_a_later_release_are_kept_as_they_are() -> None:
    entry = parse_line(LINE + " leak(cuda:0)=7 host_peak()=9")
    assert entry.peaks == {"cuda:0": 1024}
    assert entry.with_peaks({"cuda:0": 5}).line() == LINE.replace("peak(cuda:0)=1024", "") + (
        "host_peak()=9 leak(cuda:0)=7 peak(cuda:0)=5"
    )


def test_places_name_the_rank_where_there_are_several() -> None:
    assert place_of("cuda:1") == "cuda:1"
    assert Entry(ENTRY.key, {}).with_peaks({place_of("cuda:1", 3): 8}).line().endswith(" peak(cuda:1,rank=3)=8")


def test_a_capped_card_is_another_card() -> None:
    assert card_of("NVIDIA H200") == "NVIDIA-H200"
    assert card_of("NVIDIA H200", cap=100) == "NVIDIA-H200:100"


@pytest.mark.parametrize("version", ["2.13.0+cpu", "2.13.1", "2.13", "2.13.0a0+git123"])
def test_only_the_minor_release_counts(version: str) -> None:
    assert minor_of(version) == "2.13"


def test_an_entry_comes_back_from_json() -> None:
    assert Entry.from_json(ENTRY.as_json()) == ENTRY
