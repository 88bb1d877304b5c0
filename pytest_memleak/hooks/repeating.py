"""A test's body several times in one call of it, with fresh fixtures: `max_leak(repeat=…)`, and a run set apart."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_memleak import insides
from pytest_memleak.hooks.models import ModelNames
from pytest_memleak.hooks.values import Values, runs_apart
from pytest_memleak.measurement import Measurement
from pytest_memleak.plan import Plan


class RepeatedRuns:
    """One test's: all runs of a leak's budget, and one before them for a promise that would be in their numbers."""

    def __init__(
        self, item: pytest.Item, plan: Plan, backend: str, names: ModelNames, values: Values, measurement: Measurement
    ) -> None:
        self._item: Any = item
        self._names = names
        self._values = values
        self._measurement = measurement
        self._runs = plan.leak.runs if plan.leak is not None else 1
        self._apart = runs_apart(plan, backend)
        self._instances: list[object] = []

    @property
    def several(self) -> bool:
        """Whether a leak's budget asks for more than one run."""
        return self._runs > 1

    def begin(self) -> None:
        if self._runs > 1 or self._apart:
            # The innermost place: capture, logging and time-outs of other plugins hold for all runs.
            self._item.runtest = self._run_all

    def end(self) -> None:
        vars(self._item).pop("runtest", None)

    def forget(self) -> None:
        """What was kept of the test so that nothing of it would be missed."""
        self._instances.clear()

    def _run_all(self) -> None:
        """pytest tears the last one down."""
        if self._apart:
            self._run_once()
            self._values.poisoned_run_ended()
            self._tear_down()
            self._measurement.forget()
            self._set_up_afresh()
        for _ in range(self._runs - 1):
            self._run_once()
            self._values.run_ended()
            self._tear_down()
            self._set_up_afresh()
        type(self._item).runtest(self._item)

    def _run_once(self) -> None:
        type(self._item).runtest(self._item)
        if recorded := insides.recorded_failure(self._item):
            raise recorded
        self._measurement.body_ended()

    def _tear_down(self) -> None:
        insides.tear_down(self._item)
        # pytest keeps a test's instance until the session ends: a run more must not hide what one holds.
        self._instances.append(getattr(self._item, "_instance", None))

    def _set_up_afresh(self) -> None:
        self._names.run_begins()
        self._values.run_begins()
        self._measurement.run_begins()
        insides.set_up_afresh(self._item)
        self._measurement.body_begins()
