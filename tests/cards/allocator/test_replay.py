"""Runs that were recorded on a card (see benchmarks/record_traces.py), on the emulation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pytest_memleak.cards.allocator.replay import replay, replay_in_own_space
from pytest_memleak.cards.allocator.trace import Action, Event, Trace, read_trace

FOLDER = Path(__file__).parents[3] / "fixtures" / "traces"
PATHS = sorted(FOLDER.glob("*.trace.gz"))

# What a card says of the processes on it; the emulation knows its own at most.
PROCESSES = re.compile(
    r"(?:Process \d+ has|Including non-PyTorch memory, this process has) [\d.]+ \w+ memory in use\. "
)

every_trace = pytest.mark.parametrize("path", PATHS, ids=[path.name.split(".")[0] for path in PATHS])


def test_there_are_traces() -> None:
    assert len(PATHS) >= 6, f"{FOLDER} holds {len(PATHS)} traces: without them nothing here is compared with a card"


def test_the_traces_show_every_way_of_the_allocator() -> None:
    """Retries, refusals, the options, streams: what no trace shows would be compared with nothing."""
    traces = [read_trace(path) for path in PATHS]
    settings = {trace.header["settings"].split(":")[0] for trace in traces}
    assert {"", "expandable_segments", "max_split_size_mb", "roundup_power2_divisions"} <= settings
    assert any("garbage_collection_threshold" in trace.header["settings"] for trace in traces)
    figures: list[dict[str, int]] = [trace.header["stats"] for trace in traces]
    assert any(0 < stats["num_ooms"] < stats["num_alloc_retries"] for stats in figures), "no retry that helped"
    assert {event.action for trace in traces for event in trace.events} >= {*Action} - {
        Action.FREE_REQUESTED,
        Action.FREE_COMPLETED,
    }
    assert any(event.stream for trace in traces for event in trace.events)


@every_trace
def test_every_event_and_every_figure_are_the_cards(path: Path) -> None:
    replayed = replay(read_trace(path))
    assert replayed.difference is None
    assert replayed.wrong_figures == {}


@every_trace
def test_refusals_are_worded_as_the_card_worded_them(path: Path) -> None:
    trace = read_trace(path)
    major, minor = (int(part) for part in trace.header["torch"].split(".")[:2])
    said = [PROCESSES.sub("", text) for text in trace.header["refusals"]]
    assert [refusal.message((major, minor)) for refusal in replay(trace).refusals] == said


@every_trace
def test_in_addresses_of_its_own_the_peaks_are_the_cards(path: Path) -> None:
    """What kernels make the driver take besides is not known: so the reserved memory may differ by a segment or two."""
    trace = read_trace(path)
    emulated, card = replay_in_own_space(trace).memory_stats(), trace.header["stats"]
    for name in ("requested_bytes", "allocated_bytes"):
        for metric in ("peak", "current"):
            assert emulated[f"{name}.all.{metric}"] == card[f"{name}.all.{metric}"]
    assert emulated["reserved_bytes.all.peak"] == pytest.approx(card["reserved_bytes.all.peak"], rel=0.003)
    assert emulated["reserved_bytes.all.current"] == pytest.approx(card["reserved_bytes.all.current"], rel=0.005)


def small_trace(*events: Event, **stats: int) -> Trace:
    header: dict[str, Any] = {"total": 2**30, "free_at_start": 2**30, "settings": "", "stats": stats}
    return Trace(header, events)


BASE = 0x7000_0000_0000


def test_a_difference_is_named() -> None:
    segment = Event(Action.SEGMENT_ALLOC, 2 * 2**20, BASE)
    wrong = Event(Action.ALLOC, 10, BASE + 1024)
    replayed = replay(small_trace(segment, wrong))
    assert replayed.difference is not None
    assert (replayed.difference.index, replayed.difference.card) == (1, wrong)
    assert replayed.difference.emulated == Event(Action.ALLOC, 10, BASE)


def test_an_event_too_few_is_a_difference() -> None:
    segment = Event(Action.SEGMENT_ALLOC, 2 * 2**20, BASE)
    extra = Event(Action.SEGMENT_ALLOC, 2 * 2**20, BASE + 2 * 2**20)
    replayed = replay(small_trace(segment, Event(Action.ALLOC, 10, BASE), extra))
    assert replayed.difference is not None
    assert (replayed.difference.card, replayed.difference.emulated) == (extra, None)


def test_a_wrong_figure_is_named() -> None:
    trace = small_trace(**{"allocated_bytes.all.peak": 1})
    assert replay(trace).wrong_figures["allocated_bytes.all.peak"] == (1, 0)


def test_a_release_that_waited_is_refused() -> None:
    with pytest.raises(ValueError, match="waited for another stream"):
        replay(small_trace(Event(Action.FREE_REQUESTED, 10, BASE)))
