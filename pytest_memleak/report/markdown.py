"""A stored run as Markdown, for the summary of a job in CI and for a comment on a pull request.

Names and messages come from tests, and anybody may have written those: they are shown as text, and never become
Markdown, HTML or a mention. The whole stays below a size, since what is too long is refused where it is sent to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.records.baselines.entry import recorded_as
from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.records.stored import AgainstBaseline, StoredRun
from pytest_memleak.report.telling import BASELINE, allowed, in_words, most_telling, severity
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.wording import card_line, change, compared, place, plural, shortened

LARGEST = 60_000
"""Bytes. A comment on GitHub may have 65,536 characters."""
_NOTES = 200
"""Bytes that are kept for the words about what there was no room for."""
_WIDEST = 160
_LINK = re.compile(r":(?=//)|www(?=\.)", re.IGNORECASE)
_REFERENCE = re.compile(r"[@#!$%&~^\[]|\bGH(?=-\d)", re.IGNORECASE)
"""By what GitHub and GitLab know names, issues and merge requests. Both look for them in the text as it is shown, where
an entity is the sign itself again, but not in <code>."""
_NOTHING = "\u200b"
"""A space without width."""
_NOT_PLAIN = re.compile(r"(?<![^\W_])_|_(?![^\W_])|[^\w ./:;,=+()%±'-]")


def markdown(stored: StoredRun, *, page: str = "", marker: str = "", largest: int = LARGEST) -> str:
    """`page`: the address of the HTML page. `marker`: what a first line says that nobody sees."""
    asked = [record for record in stored.tests if record.results]
    seen = _in_question(stored)
    troubled = sorted(filter(seen, asked), key=severity)
    kept = [record for record in asked if not seen(record)]
    lines = [*([f"<!-- {marker} -->"] if marker else []), f"### {headline(stored)}", "", *_about(stored)]
    end = ["", f"[The page with every test]({page})"] if page else []
    room = _Room(largest - sum(map(_size, [*lines, *end])) - _NOTES)
    lines += _table(stored.baseline, troubled, room)
    for record in troubled:
        lines += room.all_or_nothing(_failure(record))
    title = plural(len(kept), "other test")
    if kept and room.all_or_nothing(_folded(title, [])):
        lines += _folded(title, _table(stored.baseline, kept, room))
    return "\n".join([*lines, *end])


def no_results(why: str, marker: str = "") -> str:
    return "\n".join([*([f"<!-- {marker} -->"] if marker else []), "### Memory: no results", "", _text(why)])


def headline(stored: StoredRun) -> str:
    totals = stored.totals
    if stored.run.mode == "report":
        return f"Memory: {plural(totals.tests, 'test')} read, {totals.would_fail or 'none'} would fail"
    counts = (
        (totals.failed, "failed"),
        (totals.inconclusive, "inconclusive"),
        (totals.not_judged, "not judged"),
        (totals.passed, "passed"),
    )
    return f"Memory: {', '.join(f'{count} {word}' for count, word in counts if count) or 'no test was judged'}"


class _Room:
    """How many bytes may still be written."""

    def __init__(self, left: int) -> None:
        self._left = left

    def all_or_nothing(self, lines: Sequence[str]) -> Sequence[str]:
        taken = sum(map(_size, lines))
        if taken > self._left:
            return ()
        self._left -= taken
        return lines


def _size(line: str) -> int:
    return len(line.encode("utf-8", "backslashreplace")) + 1


def _in_question(stored: StoredRun) -> Callable[[TestRecord], bool]:
    """Whether a person should look at a test: it did not keep a promise, or its peak is not the recorded one."""
    against = stored.baseline
    changed = {one.test for one in (*against.higher, *against.lower)} if against else set()

    def asks(record: TestRecord) -> bool:
        broken = any(result.verdict != "pass" for result in most_telling(record))
        return broken or not changed.isdisjoint(recorded_as(record.nodeid))

    return asks


def _about(stored: StoredRun) -> Iterator[str]:
    cards: dict[str, int] = {}
    for record in stored.tests:
        if record.card is not None:
            cards[card_line(record.card)] = cards.get(card_line(record.card), 0) + 1
    for card, tests in cards.items():
        yield f"- {plural(tests, 'test')} on {_text(card)}"
    if stored.silent_workers:
        names = _text(", ".join(stored.silent_workers))
        yield f"- **{names} fell silent**: what had finished there is told here, what was running there is not"
    if stored.baseline is not None:
        yield f"- {_baseline(stored.baseline)}"
    yield ""


def _baseline(against: AgainstBaseline) -> str:
    counts = (
        (len(against.missing), "without an entry"),
        (len(against.higher), "higher"),
        (len(against.lower), "lower"),
        (len(against.unused or ()), "unused"),
    )
    more = "".join(f", {count} {word}" for count, word in counts if count)
    return (
        f"{_code(against.path)}: {plural(against.compared, 'test')} compared with "
        f"{plural(against.entries, 'entry', 'entries')}, {against.above} above{more}{'; written' * against.written}"
    )


def _table(against: AgainstBaseline | None, records: Sequence[TestRecord], room: _Room) -> list[str]:
    """As many rows as there is room for, and how many there are besides."""
    if not records:
        return []
    columns = ["", "test", "promise", "read", "limit", *([BASELINE] if against else []), "how"]
    sides = ["---" if name not in ("read", "limit") else "---:" for name in columns]
    lines = [*room.all_or_nothing([_line(columns), _line(sides)])]
    for done, record in enumerate(records):
        rows = [_line(_cells(record, result, against)) for result in most_telling(record)]
        if not room.all_or_nothing(rows):
            return [*lines, "", f"and {plural(len(records) - done, 'more test')}, for which there is no room here", ""]
        lines += rows
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(record: TestRecord, result: CheckResult, against: AgainstBaseline | None) -> list[str]:
    read, limit = _numbers(result)
    where = f"{result.kind} on {place(result.device, result.rank)}, {result.how}" if result.measured is not None else ""
    verdict = in_words(result)
    return [
        f"**{verdict}**" if result.verdict in ("fail", "inconclusive") else verdict,
        _code(record.nodeid),
        _code(result.check),
        read,
        limit,
        *([_change(record, against)] if against else []),
        _text(where),
    ]


def _numbers(result: CheckResult) -> tuple[str, str]:
    limit = allowed(result)
    if result.measured is not None and limit is not None:
        return compared(result.measured, limit)
    read, allowed_to = ("" if one is None else format_size(one) for one in (result.measured, limit))
    return read, allowed_to


def _change(record: TestRecord, against: AgainstBaseline) -> str:
    """Of the test's peak against the recorded one; of several devices the largest."""
    if any(one.test in recorded_as(record.nodeid) for one in against.missing):
        return "no entry"
    both = [
        (one.measured, one.recorded)
        for one in record.results
        if one.check == BASELINE and one.measured is not None and one.recorded is not None
    ]
    return change(*max(both, key=lambda pair: pair[0] - pair[1])) if both else ""


def _failure(record: TestRecord) -> list[str]:
    # What report mode does not enforce is told as it would have been printed.
    told = record.results if record.verdict else [replace(result, enforced=True) for result in record.results]
    text = failure_text(told)
    if not text:
        return []
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _folded(_code(record.nodeid), [f"{fence}text", text, fence, ""])


def _folded(title: str, lines: Sequence[str]) -> list[str]:
    return [f"<details><summary>{title}</summary>", "", *lines, "</details>", ""]


def _code(text: str) -> str:
    return f"<code>{_plain(shortened(text, _WIDEST))}</code>"


def _text(text: str) -> str:
    """Text outside <code>, of which nobody is told and to which nothing is linked."""
    return _plain(_REFERENCE.sub(rf"\g<0>{_NOTHING}", text))


def _plain(text: str) -> str:
    """As entities where a sign might mean something, and no address."""
    return _NOT_PLAIN.sub(lambda found: f"&#{ord(found[0])};", _LINK.sub(rf"\g<0>{_NOTHING}", text))
