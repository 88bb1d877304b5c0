"""Who holds a card, in words: what a test waits for, and why one that waited in vain is an error."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.workers.fitting import CONTEXT, Card
from pytest_memleak.workers.holders import Holder, Want
from pytest_memleak.workers.need import Bytes, Need
from pytest_memleak.workers.processes import name_of

_NAMED = 3


def wanted(need: Need) -> str:
    if isinstance(need, Bytes):
        return f"{format_size(need.bytes)} ({need.source})"
    return "all of the card" if need.parts == 1 else f"a share of 1/{need.parts}"


def too_large(need: Bytes, card: Card) -> str:
    return (
        f"{need.source}: the test wants {format_size(need.bytes)}, and card {_name(card)} has "
        f"{format_size(card.device.total)}, of which a context takes {format_size(CONTEXT)}: run it on a larger card, "
        "or let it say that it needs less"
    )


def in_vain(need: Need, count: int, who: str, seconds: float, why: str) -> str:
    """Of a test that did not get what it wants. `who` has it: see `who_has`."""
    what = f"{count} × {wanted(need)}" if count > 1 else wanted(need)
    return f"it waited {seconds:.0f} s for {what}; {who}. {why}"


def who_has(cards: Sequence[Card], ahead: Sequence[Holder]) -> str:
    """What others hold of the cards, and who goes `ahead` of a test that waits for them."""
    holders = [f"card {_name(card)}: {_held(card)}" for card in cards]
    awaited = [holder for holder in ahead if any(card.is_awaited_by(holder) for card in cards)]
    return "; ".join([*holders, *(_waits(holder, holder.want) for holder in awaited if holder.want is not None)])


def _waits(holder: Holder, want: Want) -> str:
    part = format_size(want.need) if want.need else "a share"
    what = f"{want.count} × {part}" if want.count > 1 else part
    return f"{holder.name} waits before it, for {what}, with {want.test}"


def _name(card: Card) -> str:
    return f"{card.name} ({card.device.name})" if card.device.name else card.name


def _held(card: Card) -> str:
    told = []
    for holder in card.others:
        hold = holder.of(card.device.key)
        if hold.claim:
            told.append(f"{holder.name} has {_bytes(card, hold.claim)} for {holder.test}")
        elif hold.idle:
            waits = f" (waits itself, with {holder.want.test})" if holder.want is not None else ""
            told.append(f"{holder.name} keeps {_bytes(card, hold.idle)} between tests{waits}")
    told += _foreign(card)
    if not told:
        return "nobody else has any of it"
    return ", ".join(told)


def _foreign(card: Card) -> list[str]:
    others = card.foreign.bytes
    if others < 1024**2:
        return []
    largest = sorted(card.foreign.strangers.items(), key=lambda one: -one[1])[:_NAMED]
    named = [f"{name_of(pid) or 'process'} (pid {pid}) {format_size(taken)}" for pid, taken in largest]
    who = f": {', '.join(named)}" if named else ", which the driver does not name here"
    return [f"processes that are not of these test runs have {format_size(others)}{who}"]


def _bytes(card: Card, count: int) -> str:
    return "all of it" if count >= card.device.total else format_size(count)
