"""From a model to a plan that fits: its parts, a profile of each kind of batch, and the search."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pytest_memleak.budget.sizes import UNITS, format_size
from pytest_memleak.errors import BadInput
from pytest_memleak.planner.anatomy import Anatomy, anatomy
from pytest_memleak.planner.completing import KNOBS, admissible, complete, listed
from pytest_memleak.planner.estimate import Point, highest
from pytest_memleak.planner.inputs import batch, kinds
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.optimizing import (
    MakeOptimizer,
    OptimizerCost,
    optimizer_cost,
    trained_beside,
    with_what_stays,
)
from pytest_memleak.planner.pace import Links, mean_seconds
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.profiling import profile
from pytest_memleak.planner.racing import ALPHA as RACED
from pytest_memleak.planner.racing import Race
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.search import ALPHA, Found, search
from pytest_memleak.planner.speeds import links_of
from pytest_memleak.planner.states import layout_of
from pytest_memleak.planner.transformers_model import forward_arguments, transformers_model

HEADROOM = 4 * UNITS["GiB"]
"""Left free for batches of a kind that nobody could make or gave: a guess, where there is no measurement."""


class Guessed(UserWarning):
    """A kind of batch was not profiled, and memory is left free for it instead."""

    def __init__(self, message: str, kind: str, why: BadInput) -> None:
        super().__init__(message)
        self.kind = kind
        self.why = why


class FilledIn(UserWarning):
    """Some numbers of a plan were given, and the others were chosen."""


@dataclass(frozen=True)
class Planner:
    """What is known of one model's training. Made by `Planner.of`."""

    model: nn.Module
    anatomy: Anatomy
    layout: Layout
    profiles: tuple[Profile, ...]
    links: Links
    make_optimizer: MakeOptimizer | None = None
    headroom: int = 0

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        make_optimizer: MakeOptimizer | None = None,
        batches: Mapping[str, Mapping[str, Any]] | None = None,
        kinds: Collection[str] | None = None,
        rows: int = 1,
        tokens: int = 512,
        pixels: int | None = None,
        blocks: Sequence[str] | None = None,
        chunk: int | None = None,
    ) -> Planner:
        """Profiles a step with each kind of batch that the model takes, on the card where it is.

        `make_optimizer` gets weights and returns an optimizer for them. `batches`: those of one's own, by kind (text,
        image, video, audio); the other kinds' are made from the config, of so many rows of so many tokens. `kinds`:
        those that it is trained with, where these are not all that it takes.
        """
        device = next(model.parameters()).device
        gc.collect()  # what is garbage by now would count as there to stay
        parts = anatomy(model, blocks)
        modules = [block.module for block in parts.blocks]
        cost = OptimizerCost()
        if make_optimizer is not None:
            cost = optimizer_cost(make_optimizer, [one for one in model.parameters() if one.requires_grad], device)
        found, guessed = _batches(
            model, batches or {}, only=kinds, rows=rows, tokens=tokens, pixels=pixels, device=device
        )
        layout = layout_of(model, modules, cost, chunk)
        shapes = [block.shape for block in parts.blocks]
        of_kinds = [profile(model, modules, shapes, one, kind, cost) for kind, one in found.items()]
        # What a kind trains that was not profiled is not known: it may be all there is.
        profiles = with_what_stays(of_kinds, cost, trained_beside(model, modules) if guessed else None)
        return cls(
            model=model,
            anatomy=parts,
            layout=layout,
            profiles=profiles,
            links=links_of(device, profiles[0].how),
            make_optimizer=make_optimizer,
            headroom=HEADROOM if guessed else 0,
        )

    def estimate(self, plan: Plan) -> Point:
        """The highest level of a step of whichever kind, and where it is. Raises BadInput as `train` does."""
        self._refuse(plan)
        return highest(self.profiles, self.layout, plan)

    def seconds(self, plan: Plan) -> float:
        self._refuse(plan)
        return mean_seconds(self.profiles, self.layout, plan, self.links)

    def search(
        self,
        capacity: int,
        *,
        margin: float = ALPHA,
        forbid_activation_offload: bool = False,
        n_persist: int | None = None,
        n_buffer: int | None = None,
        n_swap: int | None = None,
        n_checkpoint: int | None = None,
        n_offload: int | None = None,
    ) -> Found:
        """The fastest plan of those that fit into so many bytes; numbers that are given stay as they are.

        `forbid_activation_offload`: nothing that blocks save leaves the card. It is asked for and never concluded.
        """
        given = {
            "n_persist": n_persist,
            "n_buffer": n_buffer,
            "n_swap": n_swap,
            "n_checkpoint": n_checkpoint,
            "n_offload": n_offload,
        }
        fixed = {name: value for name, value in given.items() if value is not None}
        found = self._search(capacity, margin, forbid_activation_offload, fixed)
        if fixed and len(fixed) < len(KNOBS):
            filled = {name: getattr(found.plan, name) for name in KNOBS if name not in fixed}
            warnings.warn(f"{listed(fixed)} as given; filled in: {listed(filled)}", FilledIn, stacklevel=2)
        return found

    def race(
        self,
        capacity: int,
        batches: Mapping[str, Mapping[str, Any]],
        *,
        margin: float = RACED,
        forbid_activation_offload: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Found:
        """The fastest of several plans that fit, run on these batches for some steps each. Weights stay as they are.

        It takes longer than `search`, which goes by blocks that were timed one at a time. Less of it is left free.
        `tell` is called with a line for each plan that has run: `tell=print`.
        """
        device = next(self.model.parameters()).device
        race = Race(self.model, self.layout, self.profiles, self.links, device)
        searching = functools.partial(self._search, capacity, margin, forbid_activation_offload)
        trains = functools.partial(self._train, device)
        given = {kind: dict(one) | _no_cache(self.model) for kind, one in batches.items()}
        return race.run(searching, trains, given, tell)

    def _search(self, capacity: int, margin: float, forbid: bool, fixed: Mapping[str, int]) -> Found:
        return search(
            self.profiles,
            self.layout,
            capacity,
            self.links,
            margin=margin,
            headroom=self.headroom,
            fixed=fixed,
            forbid_activation_offload=forbid,
        )

    def complete(self, **knobs: int) -> Plan:
        """Numbers that are given, completed into a plan that runs, as small as can be; for one that fits: `search`."""
        plan, filled_in = complete(self.layout, **knobs)
        if filled_in:
            warnings.warn(filled_in, FilledIn, stacklevel=2)
        return plan

    def train(self, plan: Plan) -> Training:
        """The model by that plan, for as long as it is entered. Raises BadInput for one that could not run."""
        return self._train(next(self.model.parameters()).device, plan)

    def _train(self, device: torch.device, plan: Plan) -> Training:
        self._refuse(plan)
        return Training(
            self.model, [one.module for one in self.anatomy.blocks], self.layout, plan, self.make_optimizer, device
        )

    def _refuse(self, plan: Plan) -> None:
        if conflict := admissible(self.layout, plan):
            raise BadInput(f"{plan} cannot run: {conflict}")


def _batches(
    model: nn.Module, given: Mapping[str, Mapping[str, Any]], *, only: Collection[str] | None, **sizes: Any
) -> tuple[dict[str, dict[str, Any]], bool]:
    """One of each kind, and whether there is a kind without one."""
    takes = kinds(model)
    if isinstance(only, str) or (only is not None and not only):
        raise BadInput(f"kinds={only!r} are no kinds of batches: kinds=('text', 'image')")
    for what, named in (("kinds", only or ()), ("batches", given)):
        if strange := [kind for kind in named if kind not in takes]:
            raise BadInput(f"{what}: {', '.join(strange)}: {type(model).__name__} takes {', '.join(takes)}")
    if only is not None:
        if unwanted := [kind for kind in given if kind not in only]:
            raise BadInput(f"batches: {', '.join(unwanted)}: of kinds that kinds={tuple(only)!r} leaves out")
        takes = tuple(kind for kind in takes if kind in only)
    found: dict[str, dict[str, Any]] = {}
    guessed = False
    for kind in takes:
        if kind in given:
            found[kind] = dict(given[kind])
            continue
        try:
            found[kind] = dict(batch(model, kind, **sizes))
        except BadInput as error:
            if kind == "text":
                raise
            guessed = True
            message = (
                f"steps with {kind} batches are not profiled, and {format_size(HEADROOM)} of the card are left free "
                f"instead, which is a guess: {error}. Give one: Planner.of(model, batches={{{kind!r}: …}}); or say "
                "what it is trained with: kinds=('text', …)"
            )
            warnings.warn(Guessed(message, kind, error), stacklevel=3)
    return {kind: one | _no_cache(model) for kind, one in found.items()}, guessed


def _no_cache(model: nn.Module) -> dict[str, Any]:
    """A cache of keys and values is for generating."""
    known = transformers_model(model)
    return {"use_cache": False} if known is not None and "use_cache" in forward_arguments(known) else {}
