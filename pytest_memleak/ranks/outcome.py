"""From what the ranks of a test said to the reports of the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pytest_memleak.plan import Plan
from pytest_memleak.ranks import merging
from pytest_memleak.ranks.records import reckon
from pytest_memleak.ranks.told import Told
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.record import TestRecord
from pytest_memleak.workers.worker import worker_id


def outcome(
    item: pytest.Item, plan: Plan | None, size: int, told: Sequence[Told], why: Callable[[Told], str]
) -> dict[str, merging.Phase]:
    def revived(data: dict[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
        if isinstance(report.longrepr, list):  # of a skip: a tuple, on its way through JSON
            path, line, reason = report.longrepr
            report.longrepr = path, line, reason
        return report

    reports = [{when: revived(data) for when, data in one.reports.items()} for one in told]
    records = {
        rank: TestRecord.from_json(vars(found["teardown"])[RECORD])
        for rank, found in enumerate(reports)
        if RECORD in vars(found.get("teardown", pytest))
    }
    path, line, _ = item.location
    empty = TestRecord(item.nodeid, path, (line or 0) + 1, worker=worker_id(item.config), ranks=size)
    deaths = {one.rank: why(one) for one in told if one.died_in is not None}
    budgets = {"max_peak": plan.peak, "max_host_peak": plan.host_peak} if plan else {}
    reckoned = reckon(empty, records, size, budgets, deaths, bool(plan and plan.report))
    subreports = [[revived(data) for data in one.subreports] for one in told]
    return merging.merged(merging.Ranks(size, told, reports, subreports, why), reckoned)
