"""Which of a test's results are told where there is room for few: a job's summary, a comment, a line of a diff."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_memleak.records.record import WORST_FIRST, CheckResult, TestRecord
from pytest_memleak.wording import VERDICT_WORDS

BASELINE = "baseline"


def most_telling(record: TestRecord) -> Sequence[CheckResult]:
    """All that did not hold, the worst first; where all held, the one that was nearest to its limit."""
    # What is not enforced says nothing beside what is: of ranks, say, whose sum was promised.
    results = [result for result in record.results if result.enforced] or list(record.results)
    results.sort(key=_badness)
    broken = [result for result in results if result.verdict != "pass"]
    return broken or results[:1]


def severity(record: TestRecord) -> int:
    """For sorting tests: those that failed first."""
    return min((WORST_FIRST.index(result.verdict) for result in most_telling(record)), default=len(WORST_FIRST))


def allowed(result: CheckResult) -> int | None:
    """The bytes that a result is held against: its limit, or what the baseline has."""
    if result.check == BASELINE:
        return result.recorded
    return None if result.limit is None else result.limit.bytes


def in_words(result: CheckResult) -> str:
    """The verdict; of what was not enforced, what it would have been."""
    if result.enforced:
        return VERDICT_WORDS[result.verdict]
    return {"fail": "would fail", "pass": "read"}.get(result.verdict, result.verdict)


def _badness(result: CheckResult) -> tuple[int, bool, bool, float]:
    measured, limit = max(result.measured or 0, 0), allowed(result)
    used = 0.0 if limit is None else measured / limit if limit else float(measured > 0)
    # A promise says more than the baseline, where both held.
    return WORST_FIRST.index(result.verdict), result.check == BASELINE, limit is None, -used
