"""A plan as `memleak predict` prints it, in words and as data."""

from __future__ import annotations

import dataclasses
from typing import Any

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.simulated.profiles import PROFILES
from pytest_memleak.cli.plan import Planned
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.search import ALPHA, Found
from pytest_memleak.wording import plural

NOTHING: dict[str, Any] = {"plan": None, "no_plan": None, "least_plan": None}
"""In the answer where nothing is trained."""

_IDLE = (
    "run it with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: its peak is of what is allocated, and where things "
    "come and go torch's allocator may hold more than the margin besides"
)


def data_of(planned: Planned, fits_as_it_is: bool) -> dict[str, Any]:
    """What stands in the answer. `fits_as_it_is`: whether training fits without a plan, by the run itself."""
    found, nothing, card = planned.found, planned.nothing, planned.would_do
    return {
        "plan": found and _plan(planned, found, fits_as_it_is),
        "no_plan": planned.why_none or (_nothing_fits(planned) if nothing else None),
        "least_plan": nothing
        and {
            **dataclasses.asdict(nothing.smallest.plan),
            "peak": nothing.smallest.peak,
            "where": nothing.smallest.where,
            "needed": nothing.needed,
            "margin": ALPHA,
            "headroom": planned.headroom,
            "card": card and {"name": card.name, "total": card.total},
        },
    }


def _plan(planned: Planned, found: Found, fits_as_it_is: bool) -> dict[str, Any]:
    larger = found.why_not_larger
    return {
        **dataclasses.asdict(found.plan),
        "blocks": planned.blocks,
        "chunks": planned.chunks,
        "needed": not (planned.is_whole or fits_as_it_is),
        "peak": found.peak,
        "where": found.where,
        "seconds": found.seconds,
        "next": larger and {**dataclasses.asdict(larger.rung.plan), "missing": larger.missing},
        "margin": ALPHA,
        "capacity": planned.capacity,
        "headroom": planned.headroom,
        "kinds": list(planned.kinds),
        "guessed": list(planned.guessed),
        "presumed": planned.presumed,
    }


def rows_of(planned: Planned, fits_as_it_is: bool) -> dict[str, str]:
    """The same for the table."""
    found = planned.found
    if planned.why_none:
        return {"plan": f"none: {planned.why_none}"}
    rows = {"plan": f"{_in_words(planned, fits_as_it_is)} (predicted)"}
    if found is not None:
        rows["its numbers"] = str(found.plan)
        rows["its peak"] = f"{format_size(found.peak)} allocated, {found.where} (predicted); {_room(planned)}"
        rows["its step"] = f"{_seconds(found.seconds)}, a mean of {_listed(planned.kinds)} (predicted)"
        if len(planned.kinds) == 1:
            rows["its step"] = f"{_seconds(found.seconds)} with a {planned.kinds[0]} batch (predicted)"
        if not planned.is_whole:
            rows["its memory"] = _IDLE
        rows["next plan"] = _next(found)
        rows["speeds"] = planned.presumed
    if planned.guessed:
        left = f"{format_size(planned.headroom)} of the card are left free instead, which is a guess"
        rows["not profiled"] = "; ".join([*planned.guessed, left])
    return rows


def _in_words(planned: Planned, fits_as_it_is: bool) -> str:
    found = planned.found
    if found is None:
        return _nothing_fits(planned)
    if planned.is_whole:
        return "none is needed: all weights and all that blocks save stay on the card"
    if fits_as_it_is:
        return f"none is needed, but for an estimate's margin: {shares(found.plan, planned.blocks, planned.chunks)}"
    return shares(found.plan, planned.blocks, planned.chunks)


def shares(plan: Plan, blocks: int, chunks: int) -> str:
    """Its five numbers."""
    kept = blocks - plan.n_checkpoint - plan.n_offload - plan.n_swap
    modes = {
        "checkpointed": plan.n_checkpoint,
        "offloaded": plan.n_offload,
        "swapped": plan.n_swap,
        "as they are": kept,
    }
    of_blocks = ", ".join(
        f"{count} {mode} ({count / blocks:.0%})" if count else f"0 {mode}" for mode, count in modes.items()
    )
    streamed = chunks - plan.n_persist
    through = f" through {plural(plan.n_buffer, 'buffer')}" if streamed else ""
    return (
        f"of {blocks} blocks {of_blocks}; of {plural(chunks, 'chunk')} of weights {plan.n_persist} on the card, "
        f"{streamed} streamed from the host{through}"
    )


def _nothing_fits(planned: Planned) -> str:
    nothing, card = planned.nothing, planned.would_do
    assert nothing is not None
    smallest = nothing.smallest
    does = f"{card.name} would do" if card else f"none of {', '.join(PROFILES)} would do"
    return (
        f"none fits: the smallest one ({shares(smallest.plan, planned.blocks, planned.chunks)}) has a peak of "
        f"{format_size(smallest.peak)}, {smallest.where}; {_margin(planned)} it takes a card of which "
        f"{format_size(nothing.needed)} can be had: {does}"
    )


def _room(planned: Planned) -> str:
    return f"{_margin(planned)} it fits into the {format_size(planned.capacity)} that can be had"


def _margin(planned: Planned) -> str:
    left = f" and with {format_size(planned.headroom)} left free," if planned.headroom else ""
    return f"times {ALPHA:g}, since an estimate may be short,{left}"


def _next(found: Found) -> str:
    larger = found.why_not_larger
    if larger is None:
        return "none is faster (predicted)"
    gain = f"{_seconds(larger.rung.seconds)} a step"
    return (
        f"{larger.rung.plan}, {gain}, does not fit: at its peak ({larger.rung.where}) it lacks "
        f"{format_size(larger.missing)} (predicted)"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _listed(kinds: tuple[str, ...]) -> str:
    *others, last = kinds
    return f"{', '.join(others)} and {last} batches"
