"""The test that runs now: when each of its windows opens and closes, in pytest's terms."""

from __future__ import annotations

import time
from typing import Any

import pytest
from _pytest.logging import caplog_records_key

from pytest_memleak.cards.card import Card
from pytest_memleak.errors import Unavailable
from pytest_memleak.hooks import judging
from pytest_memleak.hooks.models import ModelNames
from pytest_memleak.hooks.refusals import ExpectedRefusals
from pytest_memleak.measurement import Measurement
from pytest_memleak.plan import Plan
from pytest_memleak.records.record import Block, CheckResult, TestRecord, Verdict
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.workers.worker import worker_id

ATTEMPTS = pytest.StashKey[int]()


class RunningTest:
    """One attempt of one test, from just before its fixtures are set up until its reports are made."""

    def __init__(self, item: pytest.Item, plan: Plan, card: Card) -> None:
        self.item = item
        self.plan = plan
        self.card = card
        self.measurement = Measurement(plan, card)
        self.names = ModelNames(item, plan, self.measurement.observer)
        self.expected = ExpectedRefusals(card)
        self.results: list[CheckResult] = []
        self.blocks: list[Block] = []
        self.info = card.info(plan.cap)
        self.explanation = ""
        """Of a body that ran out of memory, for its report."""
        self.body_passed = False
        self.leaked = False
        self.call_report: pytest.TestReport | None = None
        self.call_logged = False
        self._started = time.perf_counter()
        self._pauses = 0
        self._kept: list[object] = []

    def begin(self) -> None:
        """Opens the windows. Whatever fails on the way, `close` undoes."""
        self.item.stash[ATTEMPTS] = self.item.stash.get(ATTEMPTS, 0) + 1
        self.names.begin()
        self.expected.begin()
        self.measurement.begin()
        # The last step of pytest's own teardown of a test, after all finalizers of its function fixtures.
        self.item.teardown = self._teardown_item  # type: ignore[method-assign]

    def pause(self) -> None:
        """A wider fixture's set-up begins; those that it asks for in turn are part of it."""
        if not self._pauses:
            self.measurement.pause()
        self._pauses += 1

    def resume(self) -> None:
        self._pauses -= 1
        if not self._pauses:
            self.measurement.resume()

    @property
    def runs(self) -> int:
        return self.plan.leak.runs if self.plan.leak else 1

    def body_begins(self) -> None:
        self.names.body_begins()
        self.measurement.body_begins()

    def body_ended(self) -> None:
        """The body returned; that of a `unittest.TestCase` may have failed all the same."""
        if (recorded := recorded_failure(self.item)) is not None:
            self.body_failed(recorded)
            return
        self.measurement.body_ended()
        self.body_passed = True
        judging.judge_body(self)

    @property
    def refused(self) -> int:
        """Allocations that the card refused, and that the test did not say it expected to be."""
        return self.measurement.refusals - self.expected.count

    def body_failed(self, error: BaseException) -> None:
        self.measurement.body_ended()
        # Loaders wrap the error on its way: that an allocation was refused is known all the same.
        if judging.is_out_of_memory(error) or self.refused:
            judging.out_of_memory(self, error)
            self.explanation = failure_text(self.results)

    def finish(self) -> None:
        """After the teardown: undoes everything, and judges what is known only now."""
        self.close()
        if not self.body_passed:
            judging.not_judged(self)
        self.leaked = self.body_passed and any(
            result.check == "max_leak" and result.verdict == "fail" and result.enforced for result in self.results
        )
        self._kept.clear()

    def has(self, verdict: Verdict) -> bool:
        """Whether a promise of this test came to that verdict; in report mode none counts."""
        return any(result.verdict == verdict for result in self.results if result.enforced)

    def record(self) -> TestRecord:
        path, line, _ = self.item.location
        return TestRecord(
            nodeid=self.item.nodeid,
            file=path,
            line=(line or 0) + 1,
            card=self.info,
            results=tuple(self.results),
            blocks=tuple(self.blocks),
            worker=worker_id(self.item.config),
            attempt=self.item.stash[ATTEMPTS],
            duration=time.perf_counter() - self._started,
        )

    def run_once_more(self) -> None:
        """A run of the body that is not the last, and fresh fixtures for the next one."""
        item = self.item
        if not hasattr(item, "_initrequest"):
            raise Unavailable(
                f"repeat= needs a test function with fixtures, and {item.name!r} is a {type(item).__name__}"
            )
        item.runtest()
        if recorded := recorded_failure(item):
            raise recorded
        self.measurement.body_ended()
        setup_state = item.session._setupstate
        # Of the next item it asks nothing but its chain of collectors: this tears down the item and nothing wider.
        setup_state.teardown_exact(item.parent)  # type: ignore[arg-type]
        self._renew(item)
        self.measurement.run_begins()
        setup_state.setup(item)
        self.measurement.body_begins()

    def close(self) -> None:
        """Undoes everything, in whatever state the test died."""
        self.item.__dict__.pop("teardown", None)
        self.measurement.close()
        self.expected.end()
        self.names.end()

    def roots(self) -> dict[str, object]:
        """Who could hold a leak and has a name that only pytest knows."""
        named: dict[str, object] = {}
        if (instance := getattr(self.item, "_instance", None)) is not None:
            named[f"self of {type(instance).__name__}"] = instance
        for name, value in (getattr(self.item, "funcargs", None) or {}).items():
            named[f"fixture {name!r}"] = value
        return named

    def _teardown_item(self) -> None:
        try:
            type(self.item).teardown(self.item)
        finally:
            self._let_go_of_what_pytest_keeps()
            self.measurement.run_ended()
            if self.body_passed:
                # Now, and not at the end: wider fixtures are still to be torn down, and with them the owners may go.
                judging.judge_leak_of(self)

    def _let_go_of_what_pytest_keeps(self) -> None:
        """pytest holds the torn-down fixtures' values, and what was logged, until its reports are done."""
        arguments: dict[str, Any] = getattr(self.item, "funcargs", None) or {}
        scopes = getattr(getattr(self.item, "_fixtureinfo", None), "name2fixturedefs", {})
        for name in list(arguments):
            if name in scopes and scopes[name][-1].scope == "function":
                del arguments[name]
        for records in self.item.stash.get(caplog_records_key, {}).values():
            for record in records:
                record.msg, record.args = record.getMessage(), None

    def _renew(self, item: Any) -> None:
        """Makes pytest forget the fixtures and the instance of the run before, as for a new test."""
        if getattr(item, "_instance", None) is not None:
            # pytest keeps each test's instance until the session ends: a run more must not hide what it holds.
            self._kept.append(item._instance)
            del item._instance
            item._obj = None
        item._initrequest()


def recorded_failure(item: pytest.Item) -> BaseException | None:
    """What a `unittest.TestCase` test raised: pytest keeps it on the item instead of letting it through."""
    recorded = getattr(item, "_excinfo", None)
    return recorded[0].value if recorded else None
