"""Writes what became of each test, by its node id, to the file that OUTCOMES names: the first line that says so."""

from __future__ import annotations

import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr or "")
    lines = text.strip().splitlines()
    errors = [line[1:] for line in lines if line.startswith("E ")]
    # What is inconclusive says so at once; of others the last line is the error.
    errors = errors or (lines[:1] if "INCONCLUSIVE" in text else lines[-1:])
    _write(report.nodeid, report.when, report.outcome, " ".join(" ".join(errors).split())[:600])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(report.nodeid, "collect", "failed", " ".join(str(report.longrepr).split())[-300:])


def _write(*fields: str | None) -> None:
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        file.write("\t".join(map(str, fields)) + "\n")
