"""What came of the projects' tests, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.downstream_alarms import Alarm, alarms, grouped
from benchmarks.downstream_outcomes import KINDS, Comparison, compared
from benchmarks.downstream_projects import Project
from benchmarks.downstream_runs import Runs
from pytest_memleak.wording import plural, shortened, size

_HEADS = ("project", "version", *reversed(KINDS), "flaky", "changed", "ratio", "of the processor", "seconds a run")
_FOLDED = 20
"""From how many tests on a list is folded away."""
_LONGEST = 300
"""Characters of a reason."""


@dataclass(frozen=True)
class Measured:
    """One project, when all runs are done."""

    project: Project
    comparison: Comparison
    alarms: tuple[Alarm, ...]
    """Of the run that was held against the baseline that the run before it had recorded."""
    seconds: tuple[float, float]
    """Without the plugin and with it, both runs of each together."""
    processor: tuple[float, float]
    ended_by: tuple[str, ...]
    installed: Mapping[str, str]

    @property
    def fine(self) -> bool:
        return not self.comparison.changed and not self.ended_by

    def row(self) -> str:
        counts = self.comparison.counts
        cells: list[object] = [self.project.name, self.project.version, *(counts.get(kind, 0) for kind in KINDS[::-1])]
        cells += [len(self.comparison.flaky), len(self.comparison.changed)]
        cells += [f"× {with_it / without:.2f}" for without, with_it in (self.seconds, self.processor)]
        cells.append(f"{self.seconds[0] / 2:.0f}")
        return _line(cells)


def measured(runs: Runs, installed: Mapping[str, str]) -> Measured:
    last = runs.with_it[-1].measured
    return Measured(
        runs.project,
        compared([run.outcomes for run in runs.without], [run.outcomes for run in runs.with_it]),
        tuple(alarms(last.tests)) if last else (),
        (sum(run.seconds for run in runs.without), sum(run.seconds for run in runs.with_it)),
        (sum(run.processor for run in runs.without), sum(run.processor for run in runs.with_it)),
        tuple(run.ended_by for run in (*runs.without, *runs.with_it) if run.ended_by),
        installed,
    )


def table(all_of_it: Sequence[Measured], head: Sequence[str]) -> str:
    ran = sum(one.comparison.ran for one in all_of_it)
    lines = [*head, "", _line(_HEADS), "|" + "---|" * len(_HEADS), *(one.row() for one in all_of_it), ""]
    lines += [f"{ran:,} tests ran in all; of those that end alike by themselves {_changed(all_of_it)}.", ""]
    for one in all_of_it:
        lines += _section(one)
    return "\n".join(lines)


def _changed(all_of_it: Sequence[Measured]) -> str:
    count = sum(len(one.comparison.changed) for one in all_of_it)
    return f"{count or 'none'} ended otherwise with the plugin"


def _section(one: Measured) -> Iterator[str]:
    yield f"## {one.project.name} {one.project.version}"
    yield ""
    yield "With " + ", ".join(f"{name} {version}" for name, version in one.installed.items()) + "."
    for place, why in (one.project.left_out or {}).items():
        yield f"Left out: `{place}`, {why}."
    yield from (f"**A run did not come to its end: {why}.**" for why in one.ended_by)
    yield ""
    yield from (f"- changed: {changed}" for changed in one.comparison.changed)
    yield from (f"- flaky by itself: {test}" for test in one.comparison.flaky)
    yield f"{plural(len(one.alarms), 'alarm')}{':' if one.alarms else '.'}"
    yield ""
    for example, group in grouped(one.alarms):
        yield f"- {example.check} {example.verdict}, {plural(len(group), 'test')}: {shortened(example.why, _LONGEST)}"
        tests = [f"`{alarm.test}`{_bytes(alarm)}" for alarm in group]
        if len(tests) > _FOLDED:
            yield f"  <details><summary>{len(tests)} tests</summary>\n"
        yield from (f"  - {test}" for test in tests)
        if len(tests) > _FOLDED:
            yield "  </details>"
    yield ""


def _bytes(alarm: Alarm) -> str:
    return "" if alarm.bytes is None else f", {size(alarm.bytes)}"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
