"""What people read: the failure of one test, and the section "memleak" at the end of a run. Text, not written here.

A summary is a list of `Line`; `write` hands it to something like ``terminalreporter.write_line``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.records.collected import Collected, Totals
from pytest_memleak.records.record import WORST_FIRST, CheckResult, Limit, TestRecord
from pytest_memleak.report.table import provenance, rows, table
from pytest_memleak.report.tighten import Tightening, tightenings
from pytest_memleak.wording import LET_GO, card_line, exact, place, plural, shortened, sum_line

TITLE = "memleak"
_FAILURE_WIDTH = 100
_PEAKS = ("max_peak", "max_host_peak")
_MARKUP = {"fail": "red", "inconclusive": "red", "not judged": "yellow", "pass": "green"}


@dataclass(frozen=True)
class Line:
    text: str
    markup: dict[str, bool] = field(default_factory=dict)
    """Keywords of pytest's terminal writer: ``{"red": True}``."""


def write(lines: Iterable[Line], write_line: Callable[..., None]) -> None:
    for line in lines:
        write_line(line.text, **line.markup)


def failure_text(results: Sequence[CheckResult], width: int = _FAILURE_WIDTH) -> str:
    """For each broken or inconclusive promise of a test: the verdict, the sum, the limit, details, what to do."""
    problems = [result for result in results if result.enforced and result.verdict in ("fail", "inconclusive")]
    problems.sort(key=lambda result: WORST_FIRST.index(result.verdict))
    return "\n\n".join("\n".join([result.message, *_explained(result, width)]) for result in problems)


def summary_lines(collected: Collected, *, mode: str, verbosity: int, width: int) -> list[Line]:
    """The section's lines; none when there is nothing to say."""
    records = list(collected)
    if verbosity < 0:
        return [
            *_problems_in_one_line(records, mode, width),
            *_predicted_in_one_line(records),
            *_let_go(records, width, f"{TITLE}: "),
            *_silent(collected, width),
        ]
    told = [record for record in records if _worth_telling(record)]
    if not told:
        return _silent(collected, width)
    return [
        _header(collected.totals(), mode),
        *_cards(told, width),
        *_let_go(records, width, ""),
        *_silent(collected, width),
        *(_table(told, width) if mode == "report" else ()),
        *(_tests(told, verbosity, width) if verbosity > 0 else ()),
        *_tightening_lines(tightenings(told), width),
    ]


def _worth_telling(record: TestRecord) -> bool:
    card = record.card
    on_a_card_of_its_own = card is not None and (card.cap is not None or card.backend == "simulated")
    return bool(record.results or record.notes or on_a_card_of_its_own)


def _explained(result: CheckResult, width: int) -> Iterator[str]:
    if result.check in _PEAKS and result.measured is not None and result.base is not None:
        yield from _wrapped(sum_line(result.check, result.measured, result.base), width, "  ")
    if result.limit is not None:
        yield from _limit_lines(result.limit, width)
    for detail in result.details:
        yield from _wrapped(detail, width, "  ")
    for line in result.explanation:
        yield from _wrapped(line, width, "  ")
    if result.advice:
        yield from _wrapped(f"what to do: {result.advice}", width, "  ")


def _limit_lines(limit: Limit, width: int) -> Iterator[str]:
    yield from _wrapped(f'limit "{limit.text}" = {exact(limit.bytes)}, from {limit.source}', width, "  ")
    for term in limit.terms:
        yield from _wrapped(f"{term.name} = {exact(term.bytes)}: {term.meaning}", width, "    ")


def _wrapped(text: str, width: int, indent: str) -> Iterator[str]:
    """Lines of a text that may have several; long words (paths, node ids) are kept whole to be copied."""
    for line in text.splitlines():
        deeper = indent + line[: len(line) - len(line.lstrip())]
        yield from textwrap.wrap(
            line.strip(),
            width,
            initial_indent=deeper,
            subsequent_indent=deeper + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _header(totals: Totals, mode: str) -> Line:
    if mode == "report":
        over = f"{totals.would_fail} would fail" if totals.would_fail else "none would fail"
        return Line(f"{plural(totals.tests, 'test')} read in report mode: {over}", {"bold": True})
    counts = [
        f"{totals.passed} passed",
        *(
            f"{count} {word}"
            for count, word in (
                (totals.failed, "failed"),
                (totals.inconclusive, "inconclusive"),
                (totals.not_judged, "not judged"),
            )
            if count
        ),
        *([plural(totals.reruns, "rerun")] if totals.reruns else []),
    ]
    bad, unsure = totals.failed or totals.inconclusive, totals.not_judged or not totals.passed
    colour = "red" if bad else "yellow" if unsure else "green"
    return Line(f"{plural(totals.judged, 'test')} judged: {', '.join(counts)}", {colour: True, "bold": True})


def _cards(records: Sequence[TestRecord], width: int) -> Iterator[Line]:
    tests: dict[str, int] = {}
    for record in records:
        if record.card is not None:
            text = card_line(record.card)
            tests[text] = tests.get(text, 0) + 1
    for text, count in tests.items():
        many = f" [{plural(count, 'test')}]" if len(tests) > 1 else ""
        yield from (Line(part) for part in _wrapped(f"card: {text}{many}", width, ""))


def _let_go(records: Sequence[TestRecord], width: int, start: str) -> list[Line]:
    count = sum(any(note.startswith(LET_GO) for note in record.notes) for record in records)
    if not count:
        return []
    whose = "its branches are" if count == 1 else "their branches are"
    text = f"{start}{plural(count, 'test')} let unknown values become ordinary numbers: {whose} not followed"
    return [Line(part, {"yellow": True}) for part in _wrapped(f"{text} (-v names the lines)", width, "")]


def _predicted_in_one_line(records: Sequence[TestRecord]) -> list[Line]:
    count = sum(bool(record.card and record.card.backend == "simulated") for record in records)
    return [Line(f"{TITLE}: {plural(count, 'test')} on a simulated card: predicted")] if count else []


def _silent(collected: Collected, width: int) -> list[Line]:
    if not collected.silent_workers:
        return []
    names = ", ".join(collected.silent_workers)
    text = f"fell silent: {names}; what had finished there is counted here, what was running there was not judged"
    return [Line(part, {"red": True}) for part in _wrapped(text, width, "")]


def _table(records: Sequence[TestRecord], width: int) -> Iterator[Line]:
    found = rows(records)
    if not found:
        return
    for text, row in table(found, width):
        markup = {"bold": True} if row is None else {"red": True} if row.sign == "over" else {}
        yield Line(text, markup)
    for way in provenance(found):
        yield from (Line(part) for part in _wrapped(way, width, "  "))


def _tests(records: Sequence[TestRecord], verbosity: int, width: int) -> Iterator[Line]:
    for record in records:
        if not record.results and not record.blocks and not record.notes:
            continue
        worker = f"[{record.worker}] " if record.worker else ""
        yield Line(worker + shortened(record.nodeid, max(width - len(worker), 1)), {"bold": True})
        for result in record.results:
            note = " [not enforced]" if result.limit is not None and not result.enforced else ""
            for part in _wrapped(result.message + note, width, "  "):
                yield Line(part, {_MARKUP[result.verdict]: True} if result.enforced else {})
            if verbosity > 1:
                yield from (Line(part) for part in _terms(result, width))
        for block in record.blocks:
            numbers = f"peak {format_size(block.peak)}, grown {format_size(block.grown)}"
            text = f"{block.name}: {numbers} ({block.kind} on {place(block.device, block.rank)}, {block.how})"
            yield from (Line(part) for part in _wrapped(text, width, "  "))
        for note in record.notes:
            yield from (Line(part) for part in _wrapped(note, width, "  "))


def _terms(result: CheckResult, width: int) -> Iterator[str]:
    if result.measured is not None:
        base = "" if result.base is None else f", base {exact(result.base)}"
        yield from _wrapped(f"{exact(result.measured)}{base}", width, "    ")
    if result.limit is not None:
        yield from (f"  {line}" for line in _limit_lines(result.limit, width - 2))


def _tightening_lines(found: Sequence[Tightening], width: int) -> Iterator[Line]:
    if not found:
        return
    yield Line("more than half unused; could be tightened to:")
    for one in found:
        used = f"{format_size(max(one.measured, 0))} of {format_size(one.limit)} used"
        tests = f" by {one.tests} tests at most" if one.tests > 1 else ""
        # Nothing used at all is no reason for a tighter limit: the test may look at the wrong device.
        advice = f'"{one.suggestion}"' if one.suggestion else "nothing was used: is this the memory you mean?"
        text = f'{_place(one)}: "{one.text}" -> {advice} ({used}{tests})'
        yield from (Line(part) for part in _wrapped(text, width, "  "))


def _place(one: Tightening) -> str:
    return one.source if one.check in one.source else f"{one.source} {one.check}"


def _problems_in_one_line(records: Sequence[TestRecord], mode: str, width: int) -> list[Line]:
    counts: dict[str, int] = {}
    names: list[str] = []
    for record in records:
        wanted = [result for result in record.results if result.enforced or mode == "report"]
        worst = min((result.verdict for result in wanted), key=WORST_FIRST.index, default="pass")
        if worst in ("fail", "inconclusive"):
            word = "inconclusive" if worst == "inconclusive" else "would fail" if mode == "report" else "failed"
            counts[word] = counts.get(word, 0) + 1
            names.append(record.nodeid)
    if not names:
        return []
    summary = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    return [Line(_as_many_as_fit(f"{TITLE}: {summary}: ", names, width), {"red": True})]


def _as_many_as_fit(start: str, names: Sequence[str], width: int) -> str:
    """As many names as fit on the line, and how many more there are."""
    line = start + shortened(names[0], max(width - len(start), 20))
    for done, name in enumerate(names[1:], start=1):
        rest = f", and {len(names) - done} more"
        longer = f"{line}, {name}"
        if len(longer) + (len(f", and {len(names) - done - 1} more") if done + 1 < len(names) else 0) > width:
            return line + rest
        line = longer
    return line
