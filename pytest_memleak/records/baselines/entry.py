"""One line of a baseline: what one test took on one kind of card, with one release of torch."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_memleak.errors import BadInput

_PEAK = "peak"
_VALUE = re.compile(r"([a-z_]+\([^()\s]*\))=(0|[1-9][0-9]{0,18})")
_PLAIN = re.compile(r"[!$-\[\]-~][!-\[\]-~]*")
"""What is spelled as it is: printable ASCII without a backslash, and without what begins a comment."""
_UNREADABLE = re.compile(r"[\x00-\x20\x7f]")
FORM = "TEST BACKEND CARD torch-MAJOR.MINOR peak(DEVICE)=BYTES …"


class Key(NamedTuple):
    """Which entry: two runs with the same key are held against each other. Sorted as the lines are."""

    test: str
    """Its node id, as in a run without workers."""
    backend: str
    card: str
    torch: str
    """``2.13``: kernels and allocator may take other memory from one minor release to the next."""


@dataclass(frozen=True)
class Entry:
    key: Key
    values: Mapping[str, int]
    """Bytes by what they are and where: ``peak(cuda:0)``, of a rank ``peak(cuda:0,rank=1)``. Names that a later
    release may add are kept as they are."""

    @property
    def peaks(self) -> dict[str, int]:
        """By place: ``cuda:0``, ``cuda:0,rank=1``."""
        start = f"{_PEAK}("
        return {name[len(start) : -1]: count for name, count in self.values.items() if name.startswith(start)}

    def with_peaks(self, peaks: Mapping[str, int]) -> Entry:
        others = {name: count for name, count in self.values.items() if not name.startswith(f"{_PEAK}(")}
        return Entry(self.key, others | {f"{_PEAK}({place})": count for place, count in peaks.items()})

    def or_higher(self, other: Entry) -> Entry:
        """Of two that are about the same, every value that only one has, and else the higher one."""
        names = {*self.values, *other.values}
        return Entry(self.key, {name: max(self.values.get(name, 0), other.values.get(name, 0)) for name in names})

    def line(self) -> str:
        test, backend, card, torch = self.key
        values = (f"{name}={count}" for name, count in sorted(self.values.items()))
        return " ".join([escaped(test), escaped(backend), escaped(card), f"torch-{escaped(torch)}", *values])

    def as_json(self) -> dict[str, Any]:
        return {**self.key._asdict(), "peaks": self.peaks}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entry:
        key = Key(*(data[name] for name in Key._fields))
        return cls(key, {}).with_peaks(data["peaks"])


def recorded_as(nodeid: str) -> set[str]:
    """What an entry may call a test that was reported so: pytest-xdist can put a test's group behind its id."""
    return {nodeid, nodeid.rpartition("@")[0] or nodeid}


def place_of(device: str, rank: int | None = None) -> str:
    return device if rank is None else f"{device},rank={rank}"


def card_of(name: str, cap: int | None = None) -> str:
    """Its name, and how large it is made: a capped card is another card to the program that asks for its size."""
    plain = name.replace(" ", "-")
    return plain if cap is None else f"{plain}:{cap}"


def minor_of(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])


def parse_line(line: str) -> Entry:
    """The entry that a line is; a `BadInput` says what is wrong with it, not where it stands."""
    test, backend, card, torch, *values = [*line.split(" "), "", "", "", ""][: max(4, line.count(" ") + 1)]
    if not values or not torch.startswith("torch-"):
        raise BadInput(f"{line[:80]!r} is no entry: one is {FORM}, with single spaces between")
    found: dict[str, int] = {}
    for value in values:
        match = _VALUE.fullmatch(value)
        if match is None:
            raise BadInput(f"{value[:80]!r} is no value: one is peak(DEVICE)=BYTES, as peak(cuda:0)=1048576")
        if match[1] in found:
            raise BadInput(f"it says {match[1]} twice: keep one")
        found[match[1]] = int(match[2])
    key = Key(*map(_unescaped, (test, backend, card, torch.removeprefix("torch-"))))
    return Entry(key, found)


def escaped(text: str) -> str:
    """Without spaces, line ends and whatever lies beyond ASCII, so that every editor and merge leaves it as it is."""
    if _PLAIN.fullmatch(text):
        return text
    plain = text.encode("unicode_escape").decode("ascii").replace(" ", r"\x20").replace("\x7f", r"\x7f")
    return rf"\x23{plain[1:]}" if plain.startswith("#") else plain


@functools.lru_cache(maxsize=64)  # cards and releases are few
def _unescaped(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    try:
        plain = text.encode("ascii").decode("unicode_escape")
    except UnicodeError:
        plain = None
    if not text or plain is None or _UNREADABLE.search(text) or escaped(plain) != text:
        raise BadInput(f"{text[:80]!r} is not spelled as this file spells it: a backslash begins an escape")
    return plain
