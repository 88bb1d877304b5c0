"""The search for the release that changed a verdict. Only the algorithm: whoever calls it runs the releases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pytest_memleak.releases.cell import Verdict

Ask = Callable[[Sequence[tuple[str, int]]], Sequence[Verdict]]
"""The verdicts of releases, each with the number of its attempt; several can be run at once."""

Kind = Literal["changed", "between", "flaky", "ends", "unconfirmed"]
_CLEAR: tuple[Verdict, ...] = ("pass", "fail")


@dataclass
class Answer:
    kind: Kind
    before: str
    """The last release with the first end's verdict that is known."""
    after: str
    """The first one with the other's."""
    seen: dict[str, list[Verdict]] = field(default_factory=dict)
    """All verdicts of each release, in the order in which they came."""
    stepped_over: tuple[str, ...] = ()
    """Releases that gave no verdict."""
    suspects: tuple[str, ...] = ()
    """`between`: those of which each may be the one that changed it."""


def bisect(releases: Sequence[str], ask: Ask, *, fixed: bool = False) -> Answer:
    """`releases` in their order, both ends included: the first passes, the last fails; with `fixed` the reverse."""
    first, last = reversed(_CLEAR) if fixed else _CLEAR
    search = _Search(list(releases), ask)
    low, high = 0, len(releases) - 1
    if search.verdicts([low, high]) != [first, last]:
        return search.answer("ends", low, high)
    while (middle := search.next_between(low, high)) is not None:
        (verdict,) = search.verdicts([middle])
        if verdict == first:
            low = middle
        elif verdict == last:
            high = middle
    suspects = range(low + 1, high)
    # One run may have been chance: both sides once more, before somebody goes and looks for the reason.
    again = search.verdicts([low, high])
    if any(verdict in _CLEAR and verdict != wanted for verdict, wanted in zip(again, (first, last), strict=True)):
        return search.answer("flaky", low, high)
    if again != [first, last]:
        return search.answer("unconfirmed", low, high)
    return search.answer("between" if suspects else "changed", low, high)


class _Search:
    def __init__(self, releases: list[str], ask: Ask) -> None:
        self._releases = releases
        self._ask = ask
        self._seen: dict[int, list[Verdict]] = {}

    def verdicts(self, places: list[int]) -> list[Verdict]:
        found = list(self._ask([(self._releases[at], len(self._seen.get(at, ())) + 1) for at in places]))
        for at, verdict in zip(places, found, strict=True):
            self._seen.setdefault(at, []).append(verdict)
        return found

    def next_between(self, low: int, high: int) -> int | None:
        """The one nearest to the middle that has not been tried: who gave no verdict once gives none again."""
        left = [at for at in range(low + 1, high) if at not in self._seen]
        return min(left, key=lambda at: (abs(2 * at - low - high), at), default=None)

    def answer(self, kind: Kind, low: int, high: int) -> Answer:
        return Answer(
            kind,
            self._releases[low],
            self._releases[high],
            {self._releases[at]: verdicts for at, verdicts in sorted(self._seen.items())},
            tuple(self._releases[at] for at, verdicts in sorted(self._seen.items()) if verdicts[0] not in _CLEAR),
            tuple(self._releases[at] for at in range(low + 1, high + 1)) if kind == "between" else (),
        )
