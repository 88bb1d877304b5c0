"""Promises that a project's tests did not keep, and those that could not be judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_memleak.records.record import CheckResult, TestRecord

_ALARMING = ("fail", "inconclusive")


@dataclass(frozen=True)
class Alarm:
    test: str
    check: str
    verdict: str
    bytes: int | None
    why: str
    """Of a leak who holds it, of a peak that rose both numbers, else why it could not be judged."""


def alarms(records: Iterable[TestRecord]) -> list[Alarm]:
    return [_alarm(record, result) for record in records for result in record.results if result.verdict in _ALARMING]


def _alarm(record: TestRecord, result: CheckResult) -> Alarm:
    owners = [line.strip() for line in result.details]
    told = " · ".join(owners[:2]) if result.check == "max_leak" and owners else result.message
    return Alarm(record.nodeid, result.check, result.verdict, result.measured, told)


def grouped(found: Sequence[Alarm]) -> list[tuple[Alarm, list[Alarm]]]:
    """Alarms of one kind with one reason, numbers aside, with an example: the most frequent reason first."""
    groups: dict[tuple[str, str, str], list[Alarm]] = {}
    for one in found:
        groups.setdefault((one.check, one.verdict, _plain(one.why)), []).append(one)
    return [(group[0], group) for group in sorted(groups.values(), key=len, reverse=True)]


def _plain(why: str) -> str:
    return re.sub(r"0x[0-9a-f]+|\d[\d,.]*( [KMGT]?i?B\b)?", "N", why)
