"""A search for a plan of training that does not see images, or does not do what it is told: a fork's bugs, put in here.

A fork of axolotl has ProTrain (arXiv 2406.08334), which finds out how much of a training step may stay on the card. It
is in no released package. What it does, `pytest_memleak.planner` does too; that one is the reference, and each flavour
puts one of the fork's bugs into it. `text_only`: a step is profiled with text alone, so that what images, videos and
sounds take counts for nothing, and no memory is left free for it either. `stale_pin`: activations must not leave the
card where a fused kernel of LoRA's MLP is on, although the two work together. `silent_override`: a search that is given
some numbers of a plan, and not all of them, forgets them and says nothing.

The fork has the kernel's switch in its own config. Here it is looked for where the model carries its own:
``model.config.lora_mlp_kernel``.

The fix takes the bug away again, and finds nothing to do where none was put in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch

_REFERENCE = "_pytest_memleak_protrain_reference"
"""Where a function with the bug has the one without it."""

_SEARCH = ["self", "capacity", "forbid_activation_offload"]


def _text_only() -> list[Patch]:
    """Other kinds of batches are neither made nor taken from who has some, and are not missed."""
    from pytest_memleak.planner import planning

    def only_text(found: Callable[..., Any]) -> Callable[..., Any]:
        @_instead_of(found)
        def kinds(model: Any) -> tuple[str, ...]:
            return ("text",)

        return kinds

    def without_others(found: Callable[..., Any]) -> Callable[..., Any]:
        @_instead_of(found)
        def batches(model: Any, given: Any, **sizes: Any) -> Any:
            text = {kind: one for kind, one in given.items() if kind == "text"}
            return found(model, text, **{**sizes, "only": None})

        return batches

    return [
        Patch(planning, "kinds", only_text, parameters=["model"]),
        Patch(planning, "_batches", without_others, parameters=["model", "given", "sizes"]),
    ]


def _stale_pin() -> list[Patch]:
    """Who searches for a model with the kernel has forbidden offload, without having said so."""
    from pytest_memleak.planner.planning import Planner

    def pinned(found: Callable[..., Any]) -> Callable[..., Any]:
        @_instead_of(found)
        def search(self: Any, capacity: int, **asked: Any) -> Any:
            if getattr(getattr(self.model, "config", None), "lora_mlp_kernel", False):
                asked["forbid_activation_offload"] = True
            return found(self, capacity, **asked)

        return search

    return [Patch(Planner, "search", pinned, parameters=_SEARCH)]


def _silent_override() -> list[Patch]:
    """What is given counts only if all is given."""
    from pytest_memleak.planner.completing import KNOBS
    from pytest_memleak.planner.planning import Planner

    def forgetful(found: Callable[..., Any]) -> Callable[..., Any]:
        @_instead_of(found)
        def search(self: Any, capacity: int, **asked: Any) -> Any:
            if any(asked.get(name) is None for name in KNOBS):
                asked = {name: value for name, value in asked.items() if name not in KNOBS}
            return found(self, capacity, **asked)

        return search

    return [Patch(Planner, "search", forgetful, parameters=[*_SEARCH, *KNOBS])]


def _taken_away() -> Iterator[Patch]:
    """Whatever has a bug is what it was without."""
    from pytest_memleak.planner import planning

    for owner, name in ((planning, "kinds"), (planning, "_batches"), (planning.Planner, "search")):
        if hasattr(getattr(owner, name), _REFERENCE):
            yield Patch(owner, name, _reference)


def _reference(found: Any) -> Any:
    """Also where `functools.wraps` has taken the mark along: what somebody has put over the bug is passed over for as
    long as the fix is in force, because it would call the bug."""
    return getattr(found, _REFERENCE, found)


def _instead_of(found: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def named(made: Callable[..., Any]) -> Callable[..., Any]:
        made = functools.wraps(found)(made)
        setattr(made, _REFERENCE, found)
        return made

    return named


FIX = Fix(
    "protrain",
    mends="a search for a plan of training counts text alone, forbids offload unasked, or forgets what it was given",
    links=["https://arxiv.org/abs/2406.08334"],
    affected={},
    patches=_taken_away,
    bugs={"text_only": _text_only, "stale_pin": _stale_pin, "silent_override": _silent_override},
)
