"""Plans that are run to see which one is the fastest: what a time model has to guess.

A step's way forth and back is run and timed as a whole. The optimizer is left out, since it would change the weights:
its time is added as the model has it.

A machine is not as fast all the time: steps of one plan were seen to differ by a third. So the plans run in heats, in
turns; the fastest step of all heats counts, and those that are far behind are out. Between the two that are ahead there
may be one that beats both: a few copies hide behind the blocks that compute, and many do not.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.pace import Links, optimizer_seconds
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.restoring import as_it_was
from pytest_memleak.planner.running.states import LeftOnHost
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.search import Found, NothingFits

Batches = Mapping[str, Mapping[str, Any]]
Search = Callable[[Mapping[str, int]], Found]
"""With some numbers fixed."""
Tell = Callable[[str], None]

ALPHA = 1.05
"""Half of what a search leaves free: estimates of 690 plans on a card were short by 0.8 % at most, and plans whose
activations find no room were seen to end. What the optimizer keeps was not there to be seen."""
_STEPS = 2
"""Of each kind of batch in a heat, after one that makes what is made once. Many short heats see more of a machine."""
_STAY = (1.3, 1.2, 1.2, 1.1, 1.1, 1.1)
"""Of each heat, how many times the fastest a plan may take to be in the next one."""
_WITHOUT: tuple[tuple[str, ...], ...] = (
    (),
    ("n_swap", "n_offload"),
    ("n_swap",),
    ("n_offload",),
    ("n_checkpoint",),
    ("n_checkpoint", "n_swap"),
)


@dataclass(frozen=True)
class Race:
    model: nn.Module
    layout: Layout
    profiles: Sequence[Profile]
    links: Links
    device: torch.device
    """Where the model is. A plan that ran out of memory may have left some of its weights on the host."""

    def run(self, search: Search, train: Callable[[Plan], Training], batches: Batches, tell: Tell) -> Found:
        self._check(batches)
        contenders = list(_contenders(search, self.layout))
        if not contenders:
            return search({})  # which says why nothing fits
        with as_it_was(self.model, self.device), warnings.catch_warnings():
            warnings.simplefilter("ignore", LeftOnHost)  # the next plan takes them to the card, or the end
            try:
                fastest = self._raced(contenders, search, train, batches, tell)
            finally:
                self.model.to(self.device)
        if not math.isfinite(fastest.seconds):
            raise MemleakError(
                f"{len(contenders)} plans fit by their estimates, and the card had no room for any of them: what else "
                "is on it? A larger margin leaves more of it free"
            )
        return fastest

    def _raced(
        self,
        contenders: list[Found],
        search: Search,
        train: Callable[[Plan], Training],
        batches: Batches,
        tell: Tell,
    ) -> Found:
        seconds = {found.plan: math.inf for found in contenders}
        for heat, stay in enumerate(_STAY, start=1):
            for found in contenders:
                took = self._heat(train(found.plan), found.plan, batches)
                seconds[found.plan] = min(seconds[found.plan], took)
                tell(f"heat {heat} of {len(_STAY)}: {found.plan}: {_in_words(took)}")
            fastest = min(seconds.values())
            contenders = [found for found in reversed(contenders) if seconds[found.plan] <= stay * fastest]
            if not math.isfinite(fastest):
                break
            # In the last heat nobody begins: the steps of one heat are few.
            ahead = sorted((found.plan for found in contenders), key=seconds.__getitem__)[:2]
            newcomer = _between(ahead, search) if heat < len(_STAY) - 1 else None
            if newcomer is not None and newcomer.plan not in seconds:
                seconds[newcomer.plan] = math.inf
                contenders.append(newcomer)
            if len(contenders) == 1:
                break
        winner = min(contenders, key=lambda found: seconds[found.plan])
        # What a faster plan lacks goes by seconds that nobody has measured.
        return replace(winner, seconds=seconds[winner.plan], why_not_larger=None)

    def _heat(self, training: Training, plan: Plan, batches: Batches) -> float:
        # Memory that the plan before has left in pieces may be no room for this one.
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return _seconds_of(self.model, training, batches) + optimizer_seconds(
            self.profiles[0], self.layout, plan, self.links
        )

    def _check(self, batches: Batches) -> None:
        known = [profile.kind for profile in self.profiles]
        if not batches or (strange := sorted(batches.keys() - set(known))):
            what = ", ".join(strange) if batches else "none given"
            raise BadInput(f"batches: {what}: plans race on batches of kinds that were profiled ({', '.join(known)})")
        if any(profile.how == "predicted" for profile in self.profiles):
            raise BadInput("on a simulated card no step takes the time that it would: search(capacity)")


def _contenders(search: Search, layout: Layout) -> Iterator[Found]:
    """The best plan by the model, and the best ones without each of the ways that it may misjudge."""
    seen: set[Plan] = set()
    for streamed in ({}, {"n_persist": len(layout.chunks), "n_buffer": 0}):
        for without in _WITHOUT:
            try:
                found = search({**streamed, **dict.fromkeys(without, 0)})
            except (NothingFits, BadInput):  # of that kind there is none
                continue
            if found.plan not in seen:
                seen.add(found.plan)
                yield found


def _between(ahead: Sequence[Plan], search: Search) -> Found | None:
    """As many copies as halfway between them, where their weights move alike."""
    if len(ahead) < 2 or (ahead[0].n_persist, ahead[0].n_buffer) != (ahead[1].n_persist, ahead[1].n_buffer):
        return None
    fixed = {name: getattr(ahead[0], name) for name in ("n_persist", "n_buffer")}
    for name in ("n_swap", "n_offload"):
        fixed[name] = (getattr(ahead[0], name) + getattr(ahead[1], name)) // 2
    try:
        return search(fixed)
    except (NothingFits, BadInput):  # a block more in all, and not even that fits
        return None


def _in_words(seconds: float) -> str:
    return f"{seconds:.3f} s a step" if math.isfinite(seconds) else "no room on the card"


def _seconds_of(model: nn.Module, training: Training, batches: Batches) -> float:
    """The mean of all kinds of batches; without end for a plan that the card has no room for after all."""
    fastest = dict.fromkeys(batches, math.inf)
    try:
        with training:
            for number in range(1 + _STEPS):
                for kind, batch in batches.items():
                    took = _timed(model, training, batch)
                    if number:
                        fastest[kind] = min(fastest[kind], took)
    except torch.OutOfMemoryError:
        return math.inf
    finally:
        model.zero_grad(set_to_none=True)
    return sum(fastest.values()) / len(fastest)


def _timed(model: nn.Module, training: Training, batch: Mapping[str, Any]) -> float:
    training.finish()
    begun = time.perf_counter()
    model(**batch).loss.backward()
    training.finish()
    took = time.perf_counter() - begun
    training.give_up()
    return took
