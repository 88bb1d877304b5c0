"""A plan in words, and what becomes of an answer without one: no card, real or simulated, is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from pytest_memleak.cards.simulated.profiles import MOST_MEMORY, PROFILES
from pytest_memleak.cli import plan as planning
from pytest_memleak.cli.plan import Planned, plan_for
from pytest_memleak.cli.plan_words import data_of, rows_of, shares
from pytest_memleak.cli.program import Run
from pytest_memleak.errors import Unavailable
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.search import Found, Larger, NothingFits, Rung

GIB = 2**30
RUN = Run(Path("nowhere"), "LlamaForCausalLM", "bfloat16", "none", "full", 1, 512)
CARD = PROFILES["rtx3090"]
FOUND = Found(Plan(20, 2, 4, 8, 1), 20 * GIB, 1.25, "after the blocks", None)
PLANNED = Planned(24 * GIB, FOUND, blocks=32, chunks=32, kinds=("text",), presumed="speeds")


def test_the_five_numbers() -> None:
    assert shares(Plan(20, 2, 4, 8, 1), 32, 32) == (
        "of 32 blocks 8 checkpointed (25%), 1 offloaded (3%), 4 swapped (12%), 19 as they are (59%); of 32 chunks of "
        "weights 20 on the card, 12 streamed from the host through 2 buffers"
    )
    assert shares(Plan(4, 0), 4, 4) == (
        "of 4 blocks 0 checkpointed, 0 offloaded, 0 swapped, 4 as they are (100%); of 4 chunks of weights 4 on the "
        "card, 0 streamed from the host"
    )


def test_whether_a_plan_is_needed() -> None:
    whole = replace(PLANNED, found=replace(FOUND, plan=Plan(32, 0)))
    for planned, fits, needed in ((PLANNED, False, True), (PLANNED, True, False), (whole, False, False)):
        assert data_of(planned, fits)["plan"]["needed"] is needed
        assert rows_of(planned, fits)["plan"].startswith("none is needed") is not needed
    # By the run it fits, by an estimate with its margin it does not: the plan is told all the same.
    assert "of 32 blocks 8 checkpointed" in rows_of(PLANNED, True)["plan"]
    checkpointed = replace(PLANNED, found=replace(FOUND, plan=Plan(32, 0, n_checkpoint=1)))
    assert data_of(checkpointed, False)["plan"]["needed"]


def test_the_next_plan_and_what_it_lacks() -> None:
    assert rows_of(PLANNED, False)["next plan"] == "none is faster (predicted)"
    larger = Larger(Rung(Plan(21, 2, 4, 8, 1), 22 * GIB, 0.5, "forward of block 3"), GIB // 2)
    planned = replace(PLANNED, found=replace(FOUND, why_not_larger=larger))
    assert rows_of(planned, False)["next plan"] == (
        "n_persist=21 n_buffer=2 n_swap=4 n_checkpoint=8 n_offload=1, 500 ms a step, does not fit: at its peak "
        "(forward of block 3) it lacks 512 MiB (predicted)"
    )
    found = data_of(planned, False)["plan"]
    assert found["next"] == {
        "n_persist": 21,
        "n_buffer": 2,
        "n_swap": 4,
        "n_checkpoint": 8,
        "n_offload": 1,
        "missing": GIB // 2,
    }


def test_where_things_come_and_go_the_allocator_holds_more() -> None:
    whole = replace(PLANNED, found=replace(FOUND, plan=Plan(32, 0)))
    assert rows_of(PLANNED, True)["its memory"].startswith(
        "run it with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: its peak is of what is allocated"
    )
    assert "its memory" not in rows_of(whole, True)


def test_seconds_are_a_mean_of_kinds() -> None:
    assert rows_of(PLANNED, False)["its step"] == "1.25 s with a text batch (predicted)"
    several = replace(PLANNED, kinds=("text", "image", "video"))
    assert rows_of(several, False)["its step"] == "1.25 s, a mean of text, image and video batches (predicted)"


def test_headroom_counts_for_the_card_that_would_do() -> None:
    smallest = Rung(Plan(0, 1, 0, 32), 20 * GIB, 1.0, "after the blocks")
    nothing = NothingFits(smallest, 16 * GIB, 1.1, "")
    planned = replace(PLANNED, found=None, nothing=nothing)
    assert planned.would_do == PROFILES["rtx4090"], "22 GiB: an L4 has 22.04, and its context takes a part"
    told = data_of(planned, False)
    assert told["plan"] is None
    assert told["no_plan"].endswith(
        "has a peak of 20 GiB, after the blocks; times 1.1, since an estimate may be short, it takes a card of which "
        "22 GiB can be had: NVIDIA GeForce RTX 4090 would do"
    )
    guessed = replace(
        planned,
        nothing=NothingFits(smallest, 16 * GIB, 1.1, "", headroom=4 * GIB),
        headroom=4 * GIB,
        guessed=("steps with image batches are not profiled: why",),
    )
    assert guessed.would_do == PROFILES["a100-40g"]
    assert data_of(guessed, False)["least_plan"]["needed"] == nothing.needed + 4 * GIB
    rows = rows_of(guessed, False)
    assert "26 GiB can be had" in rows["plan"]
    assert "4 GiB of the card are left free instead" in rows["not profiled"]
    endless = NothingFits(replace(smallest, peak=200 * GIB), 16 * GIB, 1.1, "")
    assert "none of rtx3090, " in data_of(replace(planned, nothing=endless), False)["no_plan"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Unavailable("the search for a plan needs numpy"), "the search for a plan needs numpy"),
        (RuntimeError("no such kernel\nand more"), "the planner ended without an answer: RuntimeError: no such kernel"),
    ],
)
def test_without_a_plan_the_reason_is_told(error: Exception, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(work: Any, card: Any) -> None:
        raise error

    monkeypatch.setattr(planning, "predict_on", broken)
    planned = plan_for(RUN, CARD, lambda stage: None)
    assert rows_of(planned, True) == {"plan": f"none: {why}"}
    assert data_of(planned, True) == {"plan": None, "no_plan": why, "least_plan": None}


@pytest.mark.parametrize(
    ("fits", "doubt", "why"), [(True, "it went by a value", "it went by a value"), (False, None, "800 GiB")]
)
def test_a_plan_that_cannot_be_relied_on_is_none(
    fits: bool, doubt: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen:
        def __init__(self) -> None:
            self.fits, self.doubt = fits, doubt

    def searched(work: Any, card: Any) -> Seen:
        # The card without end is as fast as the real one, and all of it can be had.
        assert (card.name, card.total, card.context) == (CARD.name, MOST_MEMORY, 0)
        work.planned = replace(work.planned, found=FOUND)
        return Seen()

    monkeypatch.setattr(planning, "predict_on", searched)
    planned = plan_for(RUN, CARD, lambda stage: None)
    assert planned.found is None
    assert planned.capacity == CARD.total - CARD.context
    assert why in planned.why_none
