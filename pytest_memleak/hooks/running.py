"""The test that runs now: when each of its windows opens and closes, in pytest's terms."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import SkipTest

import pytest

from pytest_memleak import insides
from pytest_memleak.blocks import enforce
from pytest_memleak.cards.card import Card
from pytest_memleak.errors import Inconclusive, Judged
from pytest_memleak.hooks import judging
from pytest_memleak.hooks.attributes import WAITED
from pytest_memleak.hooks.baseline_of_test import BaselineOfTest
from pytest_memleak.hooks.explaining import Explaining, recordings_for
from pytest_memleak.hooks.models import ModelNames
from pytest_memleak.hooks.progress import LiveLine, TestProgress
from pytest_memleak.hooks.refusals import ExpectedRefusals
from pytest_memleak.hooks.repeating import RepeatedRuns
from pytest_memleak.hooks.snapshots import Snapshot
from pytest_memleak.hooks.upstream import PatchedUpstream
from pytest_memleak.hooks.values import Values
from pytest_memleak.measurement import Measurement
from pytest_memleak.meters.timeline import INTERVAL, SELDOM
from pytest_memleak.plan import Plan
from pytest_memleak.records.record import Block, CheckResult, TestRecord, Verdict
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.settings import AUTO
from pytest_memleak.upstream.watched import Scope
from pytest_memleak.workers.worker import worker_id

ATTEMPTS = pytest.StashKey[int]()

_NOT_A_FAILURE = (pytest.skip.Exception, pytest.xfail.Exception, SkipTest)


class RunningTest:
    """One attempt of one test, from just before its fixtures are set up until its reports are made."""

    def __init__(
        self,
        item: pytest.Item,
        plan: Plan,
        card: Card,
        watched_by: Mapping[pytest.FixtureDef[Any], Scope],
        explain: str = AUTO,
        shown: bool = False,
        live: LiveLine | None = None,
        baseline: BaselineOfTest | None = None,
    ) -> None:
        """`shown`: on a page, with its memory over time. `live`: where the test's memory is shown while it runs."""
        self.item = item
        self.plan = plan
        self.card = card
        self.wider = watched_by.keys()
        """Fixtures of wider scopes that are there, whichever test asked for them."""
        self.live = live
        self.baseline = baseline
        self.measurement = Measurement(
            plan,
            card,
            item.path.parent,
            *recordings_for(plan, card, explain),
            timed=INTERVAL if shown else SELDOM if live is not None else None,
            watch=None if live is None else TestProgress(self, live),
        )
        self.names = ModelNames(item, plan, self.measurement.observer, watched_by)
        self.expected = ExpectedRefusals(card)
        self.values = Values(self)
        self.repeated = RepeatedRuns(item, plan, card.backend, self.names, self.values, self.measurement)
        self.upstream = PatchedUpstream(plan)
        self.snapshot = Snapshot(item)
        self.explaining = Explaining(self, explain, shown)
        self.results: list[CheckResult] = []
        self.blocks: list[Block] = []
        self.info = card.info(plan.cap)
        self.explanation = ""
        """Of a body that ran out of memory, for its report."""
        self.body_over = False
        self.body_passed = False
        self.undecided = False
        """The body ended because a limit on a part of it could not be judged."""
        self.call_report: pytest.TestReport | None = None
        self.call_logged = False
        self._started = time.perf_counter()
        self._pauses = 0
        self._watching = False

    def begin(self) -> None:
        """Opens the windows. Whatever fails on the way, `close` undoes."""
        self.item.stash[ATTEMPTS] = self.item.stash.get(ATTEMPTS, 0) + 1
        self.names.begin()
        self.expected.begin()
        self.upstream.begin()  # before the windows open: what it imports is not the test's
        self.measurement.begin()
        if self.baseline is not None:
            self.baseline.begin()
        self.explaining.begin()
        self.values.begin()
        self._watching = True
        if self.live is not None:
            self.live.show()
        item: Any = self.item
        # The last step of pytest's own teardown of a test, after all finalizers of its function fixtures.
        item.teardown = self._teardown_item
        self.repeated.begin()

    def pause(self) -> None:
        """A wider fixture is set up or torn down; those that it asks for in turn are part of it."""
        if not self._pauses and self._watching:
            self.values.pause()
            self.measurement.pause()
            if self.live is not None:
                self.live.hide()
        self._pauses += 1

    def resume(self) -> bool:
        """True unless the pause is known to have changed nothing that is held."""
        self._pauses -= 1
        if self._pauses or not self._watching:
            return True
        if self.live is not None:
            self.live.show()
        changed = self.measurement.resume()
        self.values.resume()
        return changed

    def body_begins(self) -> None:
        self.names.body_begins()
        if self.live is not None:
            self.explaining.ask_limits()
        self.measurement.body_begins()

    def body_ended(self) -> None:
        """The body returned; that of a `unittest.TestCase` may have failed all the same."""
        if (recorded := insides.recorded_failure(self.item)) is not None:
            self.body_failed(recorded)
            return
        self.measurement.body_ended()
        self.snapshot.save()
        self.body_over = self.body_passed = True
        judging.judge_body(self)

    def set_up_failed(self, error: BaseException) -> None:
        """It is an error already, whatever the reason."""
        self.body_failed(error)
        self.undecided = False

    def body_failed(self, error: BaseException) -> None:
        """The set-up or the body raised: an out-of-memory is a verdict, anything else is the test's own affair."""
        self.body_over = True
        if not self._watching:
            return
        self.values.body_failed(f"its test ended with {type(error).__name__}")
        self.measurement.body_ended()
        self.snapshot.save()
        if isinstance(error, Judged) and error.results:
            self._ended_by(error)
        elif not isinstance(error, (*_NOT_A_FAILURE, KeyboardInterrupt)) and judging.made_up(self, error):
            self.undecided = True
            return
        if isinstance(error, _NOT_A_FAILURE):
            return
        # Loaders wrap the error on its way: that an allocation was refused is known all the same.
        out_of_memory = judging.is_out_of_memory(error) or self.refused > 0
        if judging.warmup_is_known(self, out_of_memory):
            judging.judge_warmup_now(self)
        if out_of_memory:
            judging.out_of_memory(self, error)
        # In report mode nothing is enforced; a test that failed by itself is told of all that may be the reason.
        self.explanation = failure_text([replace(result, enforced=True) for result in self.results])

    def _ended_by(self, error: Judged) -> None:
        """A limit on a part of the body ended it: that is the test's verdict. Before, the body might have caught it."""
        self.results = [
            judged if (judged := replace(result, enforced=True)) in error.results else result for result in self.results
        ]
        # What a function judged by itself, without the fixture, is not there yet.
        self.results += [result for result in error.results if result not in self.results]
        self.undecided = isinstance(error, Inconclusive)

    def teardown_failed(self) -> None:
        """A finalizer raised: its own frames may hold what looks like a leak, and the test is an error already."""
        why = "not judged: a fixture's teardown failed"
        self.results = [
            replace(result, verdict="not judged", message=f"max_leak {why}") if result.check == "max_leak" else result
            for result in self.results
        ]

    def finish(self) -> None:
        """After the teardown: undoes everything, and says what was not judged."""
        self.close()
        if not self.body_passed:
            judging.not_judged(self)
        self.repeated.forget()

    def close(self) -> None:
        """Undoes everything, in whatever state the test died."""
        self._watching = False
        self.explaining.end()
        vars(self.item).pop("teardown", None)
        self.repeated.end()
        with contextlib.ExitStack() as undo:  # each of them, whatever another one raises
            undo.callback(self.names.end)
            undo.callback(self.expected.end)
            undo.callback(self.values.end)
            undo.callback(self.upstream.end)
            if self.live is not None:
                undo.callback(self.live.hide)
            undo.callback(self.measurement.close)

    def judge_block(self, results: list[CheckResult]) -> None:
        """A limit on a part of the body: it ends the test where it breaks, but for report mode."""
        __tracebackhide__ = True
        self.results += [
            replace(result, enforced=result.verdict == "pass" and not self.plan.report) for result in results
        ]
        if not self.plan.report:
            enforce(results)

    @property
    def refused(self) -> int:
        """Allocations that the card refused, and that the test did not say it expected to be."""
        return self.measurement.refusals - self.expected.count

    @property
    def leaked(self) -> bool:
        return any(one.check == "max_leak" and one.verdict == "fail" and one.enforced for one in self.results)

    def has(self, verdict: Verdict) -> bool:
        """Whether a promise of this test came to that verdict; in report mode none counts."""
        return any(result.verdict == verdict for result in self.results if result.enforced)

    @property
    def attempt(self) -> int:
        return self.item.stash[ATTEMPTS]

    @property
    def waited(self) -> tuple[str, ...]:
        note = self.item.stash.get(WAITED, "")
        return (note,) if note else ()

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
            attempt=self.attempt,
            notes=(*self.waited, *self.upstream.notes, *self.values.notes, *self.card.remarks(), *self.snapshot.notes),
            duration=time.perf_counter() - self._started,
            baseline=self.baseline.entry if self.baseline is not None else None,
            timelines=self.measurement.timeline.timelines({result.device for result in self.results}),
        )

    def _teardown_item(self) -> None:
        try:
            type(self.item).teardown(self.item)
        finally:
            if self._watching:
                insides.let_go_of_what_pytest_keeps(self.item)
                # What a failed body left is in its traceback's frames, and nobody's leak. Of several runs the first
                # ones end while the body as a whole has not.
                self.measurement.run_ended(judged=self.body_passed or self.repeated.several)
                if self.body_passed:
                    # Now, and not at the end: wider fixtures are still to be torn down, and with them owners may go.
                    judging.judge_end(self)
