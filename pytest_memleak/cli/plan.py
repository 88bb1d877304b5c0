"""What the planner has to say of a training that `memleak predict` runs: the best plan that fits, or why none does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.simulated.profiles import MOST_MEMORY, PROFILES, Profile
from pytest_memleak.cli.finding import first_line
from pytest_memleak.cli.program import Run, optimizer_of, to_be_trained
from pytest_memleak.errors import MemleakError
from pytest_memleak.planner.inputs.text import TooFewTokens
from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.planning import Guessed, Planner
from pytest_memleak.planner.search import Found, NothingFits
from pytest_memleak.planner.speeds import REACHED, products_of
from pytest_memleak.prediction import PredictedCard, predict_on


@dataclass(frozen=True)
class Planned:
    """Of one run on one card."""

    capacity: int
    """What can be had of the card."""
    found: Found | None = None
    nothing: NothingFits | None = None
    """If a search has shown that not even the smallest plan fits."""
    why_none: str = ""
    """If there was no search, or none that can be relied on."""
    blocks: int = 0
    chunks: int = 0
    kinds: tuple[str, ...] = ()
    """Of batches that were profiled."""
    guessed: tuple[str, ...] = ()
    """Of each other kind, why it was not."""
    headroom: int = 0
    """Left free for those."""
    presumed: str = ""
    """The speeds that seconds rest on."""

    @property
    def is_whole(self) -> bool:
        """All states and all that blocks save stay on the card: it is trained as without a plan."""
        return self.found is not None and self.found.plan == Plan(self.chunks, 0)

    @property
    def would_do(self) -> Profile | None:
        """The smallest card known by name that has room for the smallest plan."""
        if self.nothing is None:
            return None
        needed = self.nothing.needed
        large = (one for one in PROFILES.values() if one.total - one.context >= needed)
        return min(large, key=lambda one: one.total, default=None)


def plan_for(run: Run, card: Profile, tell: Callable[[str], None]) -> Planned:
    """Profiled on such a card without end, where the model is whole; searched for on what can be had of the real size.

    Whatever becomes of the planner, the rest of the answer stands without it.
    """
    work = _Work(run, card, tell)
    try:
        # Its name stays: it tells how fast the card is.
        prediction = predict_on(work, replace(card, total=MOST_MEMORY, context=0))
    except MemleakError as error:
        return replace(work.planned, found=None, nothing=None, why_none=str(error))
    except Exception as error:  # noqa: BLE001 - whatever a library raises in a step that is run in parts
        why = f"the planner ended without an answer: {type(error).__name__}: {first_line(error)}"
        return replace(work.planned, found=None, nothing=None, why_none=why)
    if not prediction.fits or prediction.doubt:
        why = (
            prediction.doubt or f"a step does not fit on {format_size(MOST_MEMORY)} either, where it was to be profiled"
        )
        return replace(work.planned, found=None, nothing=None, why_none=why)
    return work.planned


@dataclass
class _Work:
    run: Run
    card: Profile
    tell: Callable[[str], None]
    planned: Planned = field(init=False)

    def __post_init__(self) -> None:
        self.planned = Planned(self.card.total - self.card.context)

    def __call__(self, card: PredictedCard) -> None:
        self.tell("plan: load")
        model = to_be_trained(self.run, card)
        self.tell("plan: profile a step")
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", Guessed)
            planner = Planner.of(model, make_optimizer=optimizer_of, rows=self.run.rows, tokens=self.run.columns)
        self.planned = replace(
            self.planned,
            blocks=planner.layout.blocks,
            chunks=len(planner.layout.chunks),
            kinds=tuple(one.kind for one in planner.profiles),
            guessed=tuple(_why_guessed(one.message) for one in seen if isinstance(one.message, Guessed)),
            headroom=planner.headroom,
            presumed=_speeds(self.card, planner.links, products_of(torch.device(card.device))),
        )
        self.tell("plan: search")
        try:
            self.planned = replace(self.planned, found=planner.search(self.planned.capacity))
        except NothingFits as nothing:
            self.planned = replace(self.planned, nothing=nothing)


def _why_guessed(guessed: Guessed) -> str:
    if isinstance(guessed.why, TooFewTokens):
        return f"steps with {guessed.kind} batches are not profiled: they want --seq {guessed.why.needed} at least"
    return f"steps with {guessed.kind} batches are not profiled: {guessed.why}"


def _speeds(card: Profile, links: Links, products: float) -> str:
    known = any(card.name == one.name for one in PROFILES.values())
    whose = "its data sheet's" if known else "an H200's, since the card has a size and no name"
    return (
        f"presumed, and seconds rest on them: {products / 1e12:.3g} trillion operations/s ({REACHED:.0%} of {whose}), "
        f"{links.to_card / 1e9:.3g} GB/s to and from the card, and an optimizer on the host that goes through "
        f"{links.host_optimizer / 1e9:.3g} GB/s of weights"
    )
