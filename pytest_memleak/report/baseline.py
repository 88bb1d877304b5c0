"""The lines of the summary about the run's baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.records.baselines.entry import Entry
from pytest_memleak.records.baselines.ratchet import NEW, RAISE, TRIM, Difference
from pytest_memleak.records.baselines.told import Told
from pytest_memleak.records.baselines.unmatched import Setting
from pytest_memleak.report.terminal import Line
from pytest_memleak.wording import change, plural, shortened

_SHOWN = 5
_SETTINGS = 3


def baseline_lines(told: Told, *, verbosity: int, width: int) -> list[Line]:
    """When quiet, only that the file was written, and that nothing was compared with it."""
    if verbosity < 0:
        written = [Line(f"memleak: baseline {told.terms.shown}: {_written(told)}")] if told.written else []
        return [*_unmatched(told, "memleak: "), *written]
    if not told.is_there and not told.written:
        missing = f"baseline: there is no file {told.terms.shown} yet, and nothing was compared"
        return [Line(f"{missing}: --memleak-update=new makes it", {"yellow": True})]
    lines = [Line(f"baseline {told.terms.shown}: {_counts(told)}"), *_unmatched(told)]
    many = None if verbosity > 0 else _SHOWN
    updates, found = told.terms.updates, told.found
    if found.missing and not updates(NEW):
        hint = f"without an entry: {plural(len(found.missing), 'test')} (--memleak-update=new records them)"
        lines += _listed(hint, found.missing if verbosity > 0 else (), _measured, many, width)
    if found.higher and not updates(RAISE):
        lines += _listed("above it (--memleak-update=raise lifts them):", found.higher, _changed, many, width)
    if found.lower and not updates(TRIM):
        lines += _listed("may be tighter (--memleak-update=trim lowers them):", found.lower, _changed, many, width)
    if found.unused and not updates(TRIM):
        lines += _listed("unused entries (--memleak-update=trim removes them):", found.unused, _named, many, width)
    if told.narrowed and (verbosity > 0 or updates(TRIM)):
        lines.append(Line(f"  unused entries were not looked for: {told.narrowed}"))
    return lines


def _unmatched(told: Told, start: str = "") -> list[Line]:
    """A run that looks as good as one that was held against everything."""
    found, file = told.unmatched, told.terms.shown
    if found is None or told.terms.makes_the_file:
        return []
    if found.by_name:
        why = f"none of {file}'s entries is of a test that this run measured (ids are as from the root folder)"
        what = "make new ones with --memleak-update=new"
    else:
        why = f"{file}'s entries are for {_settings(found.recorded)}; this run has {_settings(found.measured)}"
        what = "make entries for that with --memleak-update=new, or pin the release of torch and the card"
    also = f", and {told.ci} is set" if told.refused else ""
    return [
        Line(f"{start}baseline: nothing was compared{also}: {why}: {what}", {"red" if told.refused else "yellow": True})
    ]


def _settings(found: Sequence[Setting]) -> str:
    named = [f"torch {one.torch} on {one.card} ({one.backend})" for one in found[:_SETTINGS]]
    rest = [f"{len(found) - len(named)} more"] if len(found) > len(named) else []
    return ", ".join([*named, *rest])


def _counts(told: Told) -> str:
    entries = plural(told.entries, "entry", "entries")
    above = f", {told.above} above" if told.above else ""
    return (
        f"{plural(told.compared, 'test')} compared with {entries}{above}{f'; {_written(told)}' if told.written else ''}"
    )


def _written(told: Told) -> str:
    found, updates = told.found, told.terms.updates
    parts = (
        (len(found.missing), "new", NEW),
        (len(found.higher), "raised", RAISE),
        (len(found.lower), "lowered", TRIM),
        (len(found.unused), "removed", TRIM),
    )
    done = [f"{count} {word}" for count, word, update in parts if count and updates(update)]
    if told.settled:
        done.append(f"the higher of {plural(told.settled, 'contradiction')} taken")
    return f"written: {', '.join(done) or 'no entries'}"


def _listed(
    title: str, found: Sequence[Entry] | Sequence[Difference], words: Callable[..., str], many: int | None, width: int
) -> list[Line]:
    shown = [Line(f"    {shortened(words(one), max(width - 4, 20))}") for one in found[:many]]
    rest = len(found) - len(shown)
    more = [Line(f"    and {rest} more (-v names them)")] if rest and shown else []
    return [Line(f"  {title}"), *shown, *more]


def _changed(one: Difference) -> str:
    parts = [
        f"{format_size(was)} -> {format_size(now)} on {place}, {change(now, was)}" for place, was, now in one.places
    ]
    return f"{one.before.key.test}: {'; '.join(parts)}"


def _measured(entry: Entry) -> str:
    peaks = ", ".join(f"{format_size(count)} on {place}" for place, count in entry.peaks.items())
    return f"{entry.key.test}: {peaks}"


def _named(entry: Entry) -> str:
    return f"{entry.key.test} ({entry.key.backend} {entry.key.card}, torch {entry.key.torch})"
