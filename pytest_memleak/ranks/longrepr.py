"""A failure of several ranks as pytest shows failures and sends them between processes. Checked on pytest 8.3, 9.2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _pytest._code.code import ExceptionChainRepr, ReprEntryNative, ReprFileLocation, ReprTraceback

Link = tuple[ReprTraceback, ReprFileLocation | None, str | None]


@dataclass(frozen=True)
class Part:
    """What some ranks have to say: pytest's own representation of a failure, or a text."""

    ranks: tuple[int, ...]
    repr: Any = None
    text: str = ""
    note: str = ""
    """After the name of its ranks."""


def named(ranks: Sequence[int], size: int) -> str:
    if len(ranks) == size > 1:
        return f"all {size} ranks"
    numbers = ", ".join(map(str, ranks))
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {numbers} of {size}"


def of(parts: Sequence[Part], size: int) -> ExceptionChainRepr:
    """One after the other, each under the name of its ranks; the first is what a summary in one line shows."""
    links: list[Link] = []
    for part in parts:
        if part.repr is None:
            links.append((_native(part.text), _crash(_first_line(part.text)), None))
            continue
        if size > 1:
            links.append((_native(f"{named(part.ranks, size)}{part.note}:"), None, None))
        links += _links(part.repr)
    summary = _summary(parts[0], size)
    last = links[-1]
    links[-1] = (last[0], summary, last[2])  # where pytest looks for it, also after it was sent
    return ExceptionChainRepr(links)


def _links(shown: Any) -> list[Link]:
    if isinstance(shown, ExceptionChainRepr):
        return list(shown.chain)
    if hasattr(shown, "reprtraceback"):
        return [(shown.reprtraceback, shown.reprcrash, None)]
    return [(_native(str(shown)), None, None)]


def _summary(part: Part, size: int) -> ReprFileLocation:
    if part.repr is None:
        return _crash(_first_line(part.text))
    crash = getattr(part.repr, "reprcrash", None)
    message = crash.message if crash is not None else _first_line(str(part.repr))
    named_message = f"{named(part.ranks, size)}: {message}" if size > 1 else message
    return ReprFileLocation(crash.path, crash.lineno, named_message) if crash is not None else _crash(named_message)


def _native(text: str) -> ReprTraceback:
    return ReprTraceback([ReprEntryNative([text.rstrip("\n") + "\n"])], None, "native")


def _crash(message: str) -> ReprFileLocation:
    return ReprFileLocation("", 0, message)


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")
