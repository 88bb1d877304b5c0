"""What may be said for an option, and how its text is read. A text that is wrong is a `BadInput` that quotes it."""

from __future__ import annotations

from collections.abc import Callable

from pytest_memleak.errors import BadInput

ENFORCE, REPORT = "enforce", "report"
MODES = (ENFORCE, REPORT)
AUTO, ALWAYS, RERUN, NEVER = "auto", "always", "rerun", "never"
EXPLAIN = (AUTO, ALWAYS, RERUN, NEVER)
PROGRESS = (AUTO, NEVER)
RANKS_TIMEOUT = 300.0
EQUAL, WHOLE, OFF = "equal", "whole", "off"
SHARES = (EQUAL, WHOLE, OFF)
CARD_TIMEOUT = 3600.0
SIMULATED = "simulated"
BACKENDS = ("auto", "real", SIMULATED, "cpu")


def one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in allowed:
            raise BadInput(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return read


def some_of(allowed: tuple[str, ...]) -> Callable[[str], frozenset[str]]:
    """Several with commas."""

    def read(text: str) -> frozenset[str]:
        return frozenset(map(one_of(allowed), (part.strip() for part in text.split(","))))

    return read


def seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise BadInput(f"{text!r} is not a number of seconds")
    return number


def share(text: str) -> int | str:
    from pytest_memleak.budget.sizes import parse_size

    if text in SHARES:
        return text
    try:
        return parse_size(text)
    except BadInput as error:
        raise BadInput(f"{text!r} is not one of {', '.join(SHARES)}, nor a size: {error}") from None


def backend(text: str) -> tuple[str, str]:
    """The backend, and which cards it is to simulate."""
    from pytest_memleak.cards.simulated.profiles import cards_of

    name, colon, cards = text.partition(":")
    if name == SIMULATED:
        if colon and not cards:
            raise BadInput(f"{text!r} names no card after the colon")
        cards_of(cards)
    elif text not in BACKENDS:
        raise BadInput(f"{text!r} is not one of {', '.join(BACKENDS)}, simulated:CARD")
    return name, cards
