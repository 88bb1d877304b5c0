"""Results as a test's properties in JUnit XML: ``memleak.max_peak.verdict`` … The names are listed in docs/json.md."""

from __future__ import annotations

from pytest_memleak.records.record import WORST_FIRST, CheckResult, TestRecord
from pytest_memleak.wording import card_line

PREFIX = "memleak."


def properties(record: TestRecord) -> list[tuple[str, str]]:
    """Of a check's several results (devices) the worst has the check's name, the others ``.2`` … Bytes are integers."""
    found: list[tuple[str, str]] = []
    if record.card is not None:
        found.append((f"{PREFIX}card", card_line(record.card)))
    for check in dict.fromkeys(result.check for result in record.results):
        results = sorted((result for result in record.results if result.check == check), key=_badness)
        for number, result in enumerate(results, start=1):
            name = f"{PREFIX}{check}" if number == 1 else f"{PREFIX}{check}.{number}"
            found += [(f"{name}.{field}", value) for field, value in _fields(result) if value]
    if record.attempt > 1:
        found.append((f"{PREFIX}attempt", str(record.attempt)))
    return found


def replace_properties(user_properties: list[tuple[str, object]], record: TestRecord) -> None:
    """Puts the record's properties into ``item.user_properties``; those of an earlier run of the test go."""
    remove_properties(user_properties)
    user_properties.extend(properties(record))


def remove_properties(user_properties: list[tuple[str, object]]) -> None:
    user_properties[:] = [entry for entry in user_properties if not str(entry[0]).startswith(PREFIX)]


def _fields(result: CheckResult) -> list[tuple[str, str]]:
    limit = result.limit
    return [
        ("verdict", result.verdict),
        ("measured", "" if result.measured is None else str(result.measured)),
        ("limit", "" if limit is None else str(limit.bytes)),
        ("limit_text", "" if limit is None else limit.text),
        ("recorded", "" if result.recorded is None else str(result.recorded)),
        ("change", "" if result.recorded is None else str((result.measured or 0) - result.recorded)),
        ("device", result.device),
        ("rank", "" if result.rank is None else str(result.rank)),
        ("kind", result.kind),
        ("how", result.how),
        ("enforced", "true" if result.enforced else "false"),
    ]


def _badness(result: CheckResult) -> tuple[bool, int, float]:
    """The worst verdict first; of equal ones the result nearest to its limit, or beyond it."""
    used = float(result.measured or 0)
    if result.limit is not None:
        used = used / result.limit.bytes if result.limit.bytes else used * float("inf") if used > 0 else 0.0
    # A rank's part of what all together promised says nothing by itself.
    return (result.rank is not None and not result.enforced), WORST_FIRST.index(result.verdict), -used
