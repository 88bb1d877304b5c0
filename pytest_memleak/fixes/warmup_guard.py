"""transformers' allocator warm-up, left out where it does not fit.

`caching_allocator_warmup` asks each device of a load for one large block. It goes by `mem_get_info`, which knows
nothing of a limit on the process, and from 5.2.0 on by the card's total instead of what is free: the load dies before
its first weight (https://github.com/unslothai/unsloth-zoo/pull/521). The guard decides for each device of the map by
itself, from its total, the process's limit and what is free at that moment; where it fits, all is as ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes.frame import Fix
from pytest_memleak.upstream.patches import Patch

RESERVE = int(1.2 * 2**30)
"""What a warm-up has to leave: its block is cut up for the weights, and the last of them may find no piece that is
large enough. As much as transformers itself leaves of a card."""
SMALL_CARD = 2 * 2**30
"""A card of this size or less, or so little of one, is not warmed up at all: the reserve is most of it."""
VARIABLES = ("MEMLEAK_ALLOCATOR_WARMUP", "UNSLOTH_ALLOCATOR_WARMUP", "UNSLOTH_GPT_OSS_ALLOCATOR_WARMUP")
"""The first of these that has a value decides."""

_ON = frozenset({"on", "enable", "1", "true"})
_OFF = frozenset({"off", "disable", "0", "false"})
_AUTO = "auto"


def mode(environment: Mapping[str, str]) -> str:
    """``on``, ``off`` or ``auto``: what the environment wants of warm-ups."""
    for name in VARIABLES:
        value = environment.get(name, "").strip().lower()
        if not value:
            continue
        if value in _ON:
            return "on"
        if value in _OFF:
            return "off"
        if value == _AUTO:
            return _AUTO
        allowed = ", ".join([*sorted(_ON), *sorted(_OFF), _AUTO])
        raise BadInput(f"{name}={environment[name]!r} is not one of {allowed}")
    return _AUTO


def _guard() -> Iterator[Patch]:
    mode(os.environ)  # what cannot be read is said now, and not in the middle of a load
    from pytest_memleak.fixes._warmups import guarded

    yield Patch(import_module("transformers.modeling_utils"), "caching_allocator_warmup", guarded)


def _by_total() -> Iterator[Patch]:
    """A warm-up that goes by the card's total and not by what is free."""
    from pytest_memleak.fixes._warmups import told_that_all_is_free

    release = import_module("transformers").__version__.split(".")
    if (int(release[0]), int(release[1])) < (5, 2):
        yield Patch(import_module("transformers.modeling_utils"), "caching_allocator_warmup", told_that_all_is_free)


FIX = Fix(
    "warmup_guard",
    mends="a model's load dies in the allocator's warm-up, which asks for more than is free or than a cap leaves",
    links=(
        "https://github.com/unslothai/unsloth-zoo/pull/521",
        "https://github.com/unslothai/unsloth-zoo/pull/569",
    ),
    # No release looks at the limit of a process; from 5.2.0 on none looks at what is free.
    affected={"transformers": ">=4.50"},
    patches=_guard,
    bugs={"by_total": _by_total},
)
