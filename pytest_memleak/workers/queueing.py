"""Who goes before whom: one that has waited for long is not overtaken any more, if waiting will end for it; and whether
nobody can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from pytest_memleak.workers.fitting import Card
from pytest_memleak.workers.holders import Holder, Want

PATIENCE = 10.0
"""Seconds that a test which waits lets others go before it that need less; then nobody overtakes it any more."""


def ahead(want: Want, others: Sequence[Holder], fits: Callable[[str, Holder], bool]) -> tuple[Holder, ...]:
    """Whom this one does not overtake: they will have all their cards when the tests that run now have ended.

    `fits`: whether one of them will have its part of a card then. Of all the cards that it would take it is asked, also
    of those that this process does not see: one that waits for a stranger's card keeps no other from its own.
    """
    now = time.monotonic()
    return tuple(
        other
        for other in others
        if other.want is not None
        and other.want.since < want.since
        and now - other.want.since > PATIENCE
        and sum(fits(key, other) for key in other.want.among) >= other.want.count
    )


def at_a_standstill(cards: Sequence[Card], want: Want) -> bool:
    """All who have any of the cards wait as well, what they keep is in the way, and this one came last."""
    others = [other for card in cards for other in card.others]
    return (
        any(card.is_kept_from(want.need) for card in cards)
        and not any(card.running for card in cards)
        and all(other.want is not None and other.want.since < want.since for other in others)
    )
