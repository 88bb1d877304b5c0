"""Caches of other packages that are known to keep what a test leaked: how they stand, and how they are emptied.

That an owner is a cache the ledger says by itself. What switches it off again it cannot know.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pytest_memleak import fixes

_PARAMETRIZED = "torch.nn.utils.parametrize"
_CACHED = f"module global {_PARAMETRIZED}._cache["
_FIX = "parametrize_cache"


def state(held: Sequence[str]) -> tuple[str, ...]:
    """What a reader of these lines about owners cannot see in them."""
    if not any(_CACHED in line for line in held) or not (count := _count()):
        return ()
    return (
        f"torch keeps in {_PARAMETRIZED}._cache what parametrized weights were computed to, by their module's id, "
        f"until _cache_enabled is 0. It is {count}: counted up and not down, by this test or before it in this process"
        ". A new module with the id of one that is gone is given its weights",
    )


def advice(held: Sequence[str]) -> str:
    """What to do, if the largest of these owners is such a cache."""
    if not held or _CACHED not in held[0] or not _count():
        return ""
    fix = fixes.find(_FIX)
    if fix.needed():
        # Its reason begins with the releases that are installed here.
        return (
            f"{fix.why()}: take a release without it, or pytest_memleak.fixes.apply({_FIX!r}) before anything is "
            "quantized, or checkpoint with use_reentrant=True"
        )
    return (
        "a hook that counts _cache_enabled down has to be registered with always_call=True: where a forward pass "
        "raises, others are not called, and non-reentrant checkpointing ends a recomputation by raising"
    )


def _count() -> int:
    return int(getattr(sys.modules.get(_PARAMETRIZED), "_cache_enabled", 0))
