"""Report mode's table: every test's peak and leak, worst first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.records.record import CheckResult, TestRecord
from pytest_memleak.wording import place, shortened

_LEAST_NAME = 20
_SIGNS = {"fail": "over", "inconclusive": "unsure", "not judged": "unread"}


@dataclass(frozen=True)
class Row:
    nodeid: str
    sign: str
    """``over`` a limit, ``unsure`` or ``unread`` of the worst result; empty otherwise."""
    peak: CheckResult | None
    host: CheckResult | None
    leak: CheckResult | None

    @property
    def severity(self) -> tuple[bool, tuple[bool, int], tuple[bool, int]]:
        return (self.sign == "over", _measured(self.peak), _measured(self.leak))


def rows(records: Iterable[TestRecord]) -> list[Row]:
    """One for each test that has a reading; of several devices the one with the highest number."""
    found = [_row(record) for record in records if record.results]
    return sorted(found, key=lambda row: row.severity, reverse=True)


def table(found: list[Row], width: int) -> list[tuple[str, Row | None]]:
    """Lines with the row each stands for; the heading stands for none."""
    hosts = any(row.host for row in found)
    heading = ["", "peak", "leak", *(["host peak"] if hosts else []), "device"]
    cells = [
        [row.sign, _shown(row.peak), _shown(row.leak), *([_shown(row.host)] if hosts else []), _device(row)]
        for row in found
    ]
    widths = [max(len(line[column]) for line in [heading, *cells]) for column in range(len(heading))]
    last = len(heading) - 1

    def line(texts: list[str], name: str) -> str:
        # Words to the left, numbers to the right.
        padded = [
            t.ljust(w) if i in (0, last) else t.rjust(w) for i, (t, w) in enumerate(zip(texts, widths, strict=True))
        ]
        start = "  ".join(padded if widths[0] else padded[1:]) + "  "
        return start + shortened(name, max(width - len(start), _LEAST_NAME))

    return [(line(heading, "test"), None), *((line(c, row.nodeid), row) for c, row in zip(cells, found, strict=True))]


def provenance(found: list[Row]) -> list[str]:
    """How the numbers were got, once for each way: ``peak of cuda:0: allocated, measured``."""
    ways: dict[str, None] = {}
    for row in found:
        for name, result in (("peak", row.peak), ("leak", row.leak), ("host peak", row.host)):
            if result is not None and result.measured is not None:
                ways[f"{name} on {result.device}: {result.kind}, {result.how}"] = None
    return sorted(ways)


def _row(record: TestRecord) -> Row:
    parts = [one for one in record.results if one.rank is not None and one.verdict == "not judged"]
    verdicts = [result.verdict for result in record.results if result not in parts or record.verdict == "not judged"]
    sign = next((_SIGNS[verdict] for verdict in _SIGNS if verdict in verdicts), "")
    return Row(record.nodeid, sign, *(_highest(record, check) for check in ("max_peak", "max_host_peak", "max_leak")))


def _highest(record: TestRecord, check: str) -> CheckResult | None:
    return max((result for result in record.results if result.check == check), key=_measured, default=None)


def _measured(result: CheckResult | None) -> tuple[bool, int]:
    """For sorting: what was not read comes after everything that was, also after a negative growth."""
    if result is None or result.measured is None:
        return False, 0
    return True, result.measured


def _shown(result: CheckResult | None) -> str:
    return "-" if result is None or result.measured is None else format_size(result.measured)


def _device(row: Row) -> str:
    return next(
        (place(result.device, result.rank) for result in (row.peak, row.leak) if result is not None and result.device),
        "-",
    )
