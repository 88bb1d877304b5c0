from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pytest_memleak.cards.allocator.trace import Action, Event, Trace, from_snapshot, read_trace, write_trace

BASE = 0x7F12_3400_0000


def entry(action: str, size: int = 0, offset: int = 0, stream: int = 0) -> dict[str, object]:
    where = {"device_free": offset} if action == "oom" else {"addr": BASE + offset}
    return {"action": action, "size": size, "stream": stream, "time_us": 1, **where}


def test_a_trace_comes_back_as_it_was_written(tmp_path: Path) -> None:
    events = [
        Event(Action.CAP, 6 * 2**30),
        Event(Action.SEGMENT_ALLOC, 2**21, BASE, 2),
        Event(Action.ALLOC, 100, BASE + 512, 2),
        Event(Action.FREE, 0, BASE + 512, 2),
        Event(Action.OOM, 7, 12345),
        Event(Action.EMPTY_CACHE),
        Event(Action.SEGMENT_FREE, 2**21, BASE, 2),
    ]
    path = tmp_path / "a.trace.gz"
    write_trace(path, Trace({"card": "a card", "stats": {"num_ooms": 1}}, events))
    trace = read_trace(path)
    assert trace.events == events
    assert trace.header["card"] == "a card"
    assert trace.header["stats"] == {"num_ooms": 1}
    written = path.read_bytes()
    write_trace(path, trace)
    assert path.read_bytes() == written


def test_marks_stand_where_a_snapshot_was_taken() -> None:
    entries = [entry("snapshot"), entry("segment_free", 2**21), entry("snapshot"), entry("snapshot")]
    marks = [Event(Action.EMPTY_CACHE), Event(Action.RESET_PEAK)]
    # The last snapshot is the one that was taken to read the trace.
    assert [event.action for event in from_snapshot(entries, marks)] == [
        Action.EMPTY_CACHE,
        Action.SEGMENT_FREE,
        Action.RESET_PEAK,
    ]


def test_a_mark_that_is_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="1 marks were set, and the trace holds 0 snapshots"):
        from_snapshot([entry("segment_free", 2**21)], [Event(Action.EMPTY_CACHE)])


def test_a_release_is_one_event_unless_it_had_to_wait() -> None:
    entries = [
        entry("free_requested", 10, 0),
        entry("free_completed", 10, 0),
        entry("free_requested", 10, 512),
        entry("alloc", 10, 1024),
        entry("free_completed", 10, 512),
    ]
    assert [event.action for event in from_snapshot(entries, [])] == [
        Action.FREE,
        Action.FREE_REQUESTED,
        Action.ALLOC,
        Action.FREE_COMPLETED,
    ]


def test_streams_are_numbered_in_the_allocators_order() -> None:
    entries = [entry("alloc", 1, 0, 9000), entry("alloc", 1, 512, 77), entry("alloc", 1, 1024, 0)]
    assert [event.stream for event in from_snapshot(entries, [])] == [2, 1, 0]


def test_a_refusal_says_what_was_free() -> None:
    assert from_snapshot([entry("oom", 4096, 777)], []) == [Event(Action.OOM, 4096, 777)]


def test_an_unknown_action_is_an_error() -> None:
    with pytest.raises(ValueError, match="'defragment'"):
        from_snapshot([entry("defragment")], [])


def test_another_format_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.trace.gz"
    path.write_bytes(gzip.compress(b'{"format": "other"}\n'))
    with pytest.raises(ValueError, match="'other'"):
        read_trace(path)
