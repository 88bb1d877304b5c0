"""What was alive when most was, in words: by the lines of code that allocated it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.events.places import Place
from pytest_memleak.events.recording import Held, Recorded
from pytest_memleak.records.record import AtPeak
from pytest_memleak.wording import looks_like, plural

if TYPE_CHECKING:
    from pytest_memleak.ledger.examples import Example

_LINES, _INSIDE = 5, 3
"""How many of the user's lines are shown, and of each how many lines of libraries that it led to."""


def groups_of(held: Iterable[Held], examples: Mapping[Place, Example] | None = None) -> tuple[AtPeak, ...]:
    """By line, the largest first. `examples`: what blocks of a place look like as tensors."""
    amounts: dict[Place, list[int]] = {}
    for place, size, blocks in held:
        found = amounts.setdefault(place, [0, 0])
        found[0] += size
        found[1] += blocks
    known = examples or {}
    groups = [AtPeak(size, blocks, *place, *known.get(place, ("", ""))) for place, (size, blocks) in amounts.items()]
    return tuple(sorted(groups, reverse=True))


def lines_of(found: Sequence[AtPeak]) -> list[str]:
    """To be read: the user's lines with the most bytes, and below each what it led to."""
    groups: dict[str, list[AtPeak]] = {}
    for one in sorted(found, reverse=True):
        groups.setdefault(one.by or one.line, []).append(one)
    ordered = sorted(groups.items(), key=lambda group: _total(group[1]), reverse=True)
    lines = []
    for line, group in ordered[:_LINES]:
        alone = len(group) == 1 and not group[0].by
        lines.append(f"{_size(group)}  {line}{_example(group[0]) if alone else ''}")
        if not alone:
            lines += [
                f"    {_size([one])}  {one.line if one.by else 'itself'}{_example(one)}" for one in group[:_INSIDE]
            ]
            lines += _rest(group[_INSIDE:], "    ")
    return lines + _rest([one for _, group in ordered[_LINES:] for one in group], "")


def rest_of(recorded: Recorded) -> list[str]:
    """What no line is known of, if it counts."""
    rest = []
    if 100 * recorded.before >= recorded.level:
        small = "" if recorded.small is not None else f", or in blocks of less than {format_size(recorded.smallest)}"
        rest.append(f"{format_size(recorded.before):>10} held before the test{small}")
    if recorded.small and 100 * recorded.small >= recorded.level:
        rest.append(f"{format_size(recorded.small):>10} in blocks of less than {format_size(recorded.smallest)}")
    return rest


def unseen_of(recorded: Recorded, grown: int) -> list[str]:
    """Of the growth of a whole process: what is in no tensor, if it counts."""
    missing = grown - (recorded.small or 0) - sum(one.bytes for one in recorded.held)
    if 100 * missing < grown:
        return []
    return [f"{format_size(missing):>10} not seen by torch: numpy, Python, other libraries, what malloc keeps"]


def _total(group: Sequence[AtPeak]) -> int:
    return sum(one.bytes for one in group)


def _size(group: Sequence[AtPeak]) -> str:
    return f"{format_size(_total(group)):>10} in {plural(sum(one.blocks for one in group), 'block')}"


def _example(one: AtPeak) -> str:
    return f" ({looks_like(one)})" if one.example else ""


def _rest(group: Sequence[AtPeak], indent: str) -> list[str]:
    return [f"{indent}{_size(group)}  {plural(len(group), 'other line')}"] if group else []
