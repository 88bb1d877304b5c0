"""A whole baseline: read from its text and written to it. What is no baseline is refused, with the line."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from pytest_memleak.errors import BadInput
from pytest_memleak.records.baselines.entry import Entry, Key, minor_of, parse_line

MAGIC = "# pytest-memleak baseline "
VERSION = "1"
HEAD = (
    f"{MAGIC}{VERSION}",
    "# What tests take of a card at their peak, in bytes. Written by pytest --memleak-update; sorted, one line a test.",
)
# git's own, of a merge that nobody has finished.
_CONFLICT = ("<<<<<<<", "|||||||", "=======", ">>>>>>>")
# By how such a file begins, the longer ones first. Editors and shells of Windows make them.
_ENCODINGS = {
    codecs.BOM_UTF8: "UTF-8 with a byte order mark",
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
    "#".encode("utf-16-le"): "UTF-16",
    "#".encode("utf-16-be"): "UTF-16",
}


class Baseline:
    def __init__(self, entries: Iterable[Entry] = (), head: tuple[str, ...] = HEAD, settled: int = 0) -> None:
        self._entries = {entry.key: entry for entry in entries}
        self._head = head
        self.settled = settled
        """Lines of the file that contradicted others, of which the higher values were taken."""

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, settle: bool = False) -> Baseline:
        """`FileNotFoundError` if there is none; `BadInput` if it is something else. `settle`: of lines that contradict
        each other, as git's merge by union leaves them, the higher values are taken."""
        try:
            mode = Path(path).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a folder has its own error
                raise BadInput(f"{os.fspath(path)} is a device, socket or pipe: give the path of an ordinary file")
            return cls.parse(Path(path).read_bytes(), os.fspath(path), settle=settle)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(f"{os.fspath(path)} cannot be read as a baseline: {error}") from error

    @classmethod
    def parse(cls, data: bytes, name: str = "the baseline", *, settle: bool = False) -> Baseline:
        if not data:
            raise BadInput(f"{name} is empty, and a baseline begins with {HEAD[0]!r}: delete it to begin a new one")
        for start, how in _ENCODINGS.items():
            if data.startswith(start):
                raise BadInput(f"{name} was saved as {how}: save it as plain UTF-8, without a byte order mark")
        lines = data.decode("latin-1").split("\n")
        _check_head(lines[0].rstrip("\r"), name)
        if lines.pop():
            raise BadInput(
                f"{name}:{len(lines) + 1}: the file ends in the middle of a line, as one does that was cut off: "
                "restore it, or end the line"
            )
        entries: dict[Key, tuple[int, Entry]] = {}
        head: list[str] = []
        settled = 0
        for number, line in enumerate((line.rstrip("\r") for line in lines), start=1):
            if line.startswith("#") and not entries:
                head.append(line)
                continue
            try:
                entry = _entry(line)
                earlier, known = entries.setdefault(entry.key, (number, entry))
                if known != entry and not settle:
                    raise BadInput(
                        f"it contradicts line {earlier}, which is about the same test and card: keep the higher one, "
                        "or let --memleak-update do so"
                    )
                if known != entry:
                    entries[entry.key] = earlier, known.or_higher(entry)
                    settled += 1
            except BadInput as error:
                raise error.located(f"{name}:{number}") from None
        return cls((entry for _, entry in entries.values()), tuple(head), settled)

    def render(self) -> bytes:
        # As they stand there, which is how any tool sorts them.
        lines = [*self._head, *sorted(entry.line() for entry in self._entries.values())]
        return ("\n".join(lines) + "\n").encode("latin-1")

    def peak_of(self, nodeid: str, backend: str, card: str, torch: str) -> int | None:
        """The last recorded peak of a test in bytes, of its fullest device, on the fullest rank; None without one.

        `card` as `card_of` names it; `torch` may be a whole version.
        """
        entry = self.get(Key(nodeid, backend, card, minor_of(torch)))
        return max(entry.peaks.values(), default=None) if entry is not None else None

    def highest(self, backend: str) -> dict[str, int]:
        """Of each test the highest peak that is recorded for this backend, whatever the card and torch were."""
        found: dict[str, int] = {}
        for entry in self._entries.values():
            if entry.key.backend == backend and entry.peaks:
                found[entry.key.test] = max(found.get(entry.key.test, 0), *entry.peaks.values())
        return found

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def changed(self, entries: Mapping[Key, Entry | None]) -> Baseline:
        """With these entries instead; those that are None are gone."""
        kept = {**self._entries, **entries}
        return Baseline((entry for entry in kept.values() if entry is not None), self._head)

    @property
    def entries(self) -> Mapping[Key, Entry]:
        return self._entries

    def __len__(self) -> int:
        return len(self._entries)


def _check_head(line: str, name: str) -> None:
    if line.startswith(_CONFLICT):
        raise BadInput(f"{name}:1: {_unmerged(line)}")
    if not line.startswith(MAGIC):
        raise BadInput(f"{name}:1: {line[:80]!r} does not begin a baseline ({HEAD[0]!r} does): is this another file?")
    if line.removeprefix(MAGIC) != VERSION:
        raise BadInput(
            f"{name}:1: version {line.removeprefix(MAGIC)[:20]!r} is not one that this pytest-memleak reads "
            f"({VERSION}): upgrade it"
        )


def _entry(line: str) -> Entry:
    if line.startswith(_CONFLICT):
        raise BadInput(_unmerged(line))
    if line.startswith("#"):
        raise BadInput("a comment stands among the entries, where sorting would move it: put it above them")
    if not line:
        raise BadInput("an empty line stands among the entries: delete it")
    return parse_line(line)


def _unmerged(line: str) -> str:
    return (
        f"{line[:40]!r} is the marker of a merge conflict that nobody has resolved: keep of each test one line (either "
        "side will do), delete the markers, and run with --memleak-update=all to measure anew"
    )
