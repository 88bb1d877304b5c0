"""The hooks around each test. Registered only when a collected test asks for something: an idle plugin costs nothing.

A peak is known when the body returns, and fails the test there, so that xfail, reruns and JUnit see an ordinary
failure. A leak is known only after the teardown. For such a test the reports are held back until then, and the report
of the body is replaced if the test leaked: one FAILED, not "1 passed, 1 error". What could not be judged is an error of
the teardown, and the body's "passed" is not counted.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_memleak import insides
from pytest_memleak.hooks import rerun
from pytest_memleak.hooks.attributes import PLAN
from pytest_memleak.hooks.hints import hint_for
from pytest_memleak.hooks.unjudged import Refused, insist, record_refusal, refusing
from pytest_memleak.hooks.wider_memory import WiderMemory
from pytest_memleak.plan import Plan
from pytest_memleak.records.attributes import RECORD, WITHHELD
from pytest_memleak.report.junit import remove_properties, replace_properties
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.settings import RERUN, Settings
from pytest_memleak.upstream import watched
from pytest_memleak.upstream.patches import Patch

if TYPE_CHECKING:
    from pytest_memleak.cards.card import Card
    from pytest_memleak.hooks.baseline_of_test import BaselineOfTest
    from pytest_memleak.hooks.progress import LiveLine
    from pytest_memleak.hooks.running import RunningTest

_WIDTHS = ("function", "class", "module", "package", "session")


class MeasuredTests:
    def __init__(self, settings: Settings, live: LiveLine | None = None) -> None:
        self._settings = settings
        self._live = live
        """Where a test's memory is shown while it runs, if there is a terminal."""
        self.test: RunningTest | None = None
        self._light: set[pytest.FixtureDef[Any]] = set()
        """Wider fixtures that hold no memory: most classes and modules have some."""
        self._watched: dict[pytest.FixtureDef[Any], watched.Scope] = {}
        self._wider_memory = WiderMemory()
        """For a baseline, and empty without one."""
        self._undo = contextlib.ExitStack()
        # A wider fixture that gets another parameter is torn down in the next test's set-up; no hook says it begins.
        self._undo.enter_context(Patch(pytest.FixtureDef, "finish", self._pausing_for_wider, parameters=["request"]))

    def pytest_plugin_registered(self, plugin: object) -> None:
        """Called of those as well that were there before."""
        self._undo.enter_context(insides.keeping_no_instance(plugin))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        plan = item.stash.get(PLAN, None)
        explained_twice = self._settings.explain == RERUN
        if plan is None or (plan.leak is None and not explained_twice):
            return None
        if self._another_plugin_runs(item, nextitem):
            return True
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if explained_twice:
            rerun.explain(item, nextitem, reports)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    # Not a wrapper: a test that is skipped must not import torch, and skips are decided by hooks that come first.
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        with refusing(item):
            if plan := item.stash.get(PLAN, None):
                remove_properties(item.user_properties)
                self._start(item, plan)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if fixturedef.scope == "function":
            return (yield)
        with self._not_the_tests(fixturedef):
            # Models that it watches are meant by every test that uses it.
            self._watched[fixturedef] = scope = watched.open_scope(_WIDTHS.index(fixturedef.scope))
            try:
                with self._counted(fixturedef, request):
                    result = yield
            except BaseException:
                watched.close_scope(scope)
                raise
            watched.keep_scope(scope)
            return result

    def pytest_sessionfinish(self) -> None:
        if self.test is not None:
            self.test.close()  # the run was interrupted in the middle of it
        self._undo.close()
        if self._live is not None:
            self._live.close()
        if "torch" in sys.modules:
            from pytest_memleak.events import garbage

            garbage.end_session()

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if scope := self._watched.pop(fixturedef, None):
            watched.close_scope(scope)
        self._wider_memory.torn_down(fixturedef)
        if fixturedef.scope != "function" and fixturedef not in self._light and "torch" in sys.modules:
            from pytest_memleak.events import garbage

            # What it held may be in reference cycles among the frozen objects.
            garbage.stale()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        test = self.test
        if test is None:
            return (yield)
        test.body_begins()
        try:
            result = yield
        except BaseException as error:
            test.body_failed(error)
            if test.undecided:
                return None  # no failure of the body, and no pass: the teardown says so
            raise
        test.body_ended()
        if test.has("fail"):
            pytest.fail(failure_text(test.results), pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        test = self.test
        if test is None:
            return (yield)
        try:
            result = yield
        except BaseException:
            test.teardown_failed()
            raise
        finally:
            test.finish()
            replace_properties(item.user_properties, test.record())
        if test.leaked and (test.call_logged or test.call_report is None):
            # Another plugin reported the body before the leak could be known: a second report is all that is left.
            pytest.fail(failure_text(test.results), pytrace=False)
        if test.has("inconclusive") and not test.has("fail") and (test.body_passed or test.undecided):
            raise Refused(failure_text(test.results), pytrace=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if (
            not insist(report, call)
            and report.failed
            and call.excinfo
            and (hint := hint_for(call.excinfo.value, item.stash.get(PLAN, None)))
        ):
            report.sections.append(("memleak", hint))
        test = self.test
        if test is not None and test.item is item:
            if call.when == "setup" and call.excinfo is not None:
                test.set_up_failed(call.excinfo.value)
            # A subtest's report is one of the call as well: it comes while the body still runs.
            if call.when == "call" and test.body_over:
                test.call_report, test.call_logged = report, False
                if test.undecided:
                    # Its body was made to end quietly: that is no unexpected success of a test that is to fail.
                    report.outcome, report.longrepr = "passed", None
                    report.__dict__.pop("wasxfail", None)
                if test.has("inconclusive") and report.passed:
                    setattr(report, WITHHELD, True)
            if test.explanation and report.failed:
                report.sections.append(("memleak", test.explanation))
                test.explanation = ""
            if report.failed and test.upstream.notes:
                # Whoever reads the failure must know that these are not the libraries as they are installed.
                report.sections.append(("memleak", "\n".join(test.upstream.notes)))
            if call.when == "teardown":
                self._amend_call_report(test)
                setattr(report, RECORD, test.record().as_json())
                self.test = None
        else:
            record_refusal(report, item)
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.test is not None and report is self.test.call_report:
            self.test.call_logged = True

    def _pausing_for_wider(self, finish: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(finish)  # a run inside of this one, as plugins test themselves, looks at its parameters
        def pausing(fixturedef: pytest.FixtureDef[Any], *args: Any, **kwargs: Any) -> None:
            if fixturedef.scope == "function" or fixturedef.cached_result is None:
                return finish(fixturedef, *args, **kwargs)
            with self._not_the_tests(fixturedef):
                return finish(fixturedef, *args, **kwargs)

        return pausing

    def _counted(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> contextlib.AbstractContextManager[None]:
        """What it brings is counted, to be a part of each test that uses it."""
        if self._settings.baseline is None or self.test is None:
            return contextlib.nullcontext()
        return self._wider_memory.set_up(fixturedef, request, self.test.card.gauges())

    @contextlib.contextmanager
    def _not_the_tests(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
        """A wider fixture is set up or torn down: what that does to memory is not the running test's."""
        test = self.test
        if test is None:
            yield
            return
        test.pause()
        try:
            yield
        finally:
            if not test.resume():
                self._light.add(fixturedef)

    def _start(self, item: pytest.Item, plan: Plan) -> None:
        from pytest_memleak.cards.probe import accelerator_seen
        from pytest_memleak.hooks.simulating import is_on as simulation_is_on
        from pytest_memleak.support import has_torch, require_torch

        if not plan.marked and not (has_torch() and (plan.baseline or accelerator_seen() or simulation_is_on())):
            return  # only the run's cap concerns it, and there is no card to cap
        require_torch()
        from pytest_memleak.cards.card import choose
        from pytest_memleak.events import garbage
        from pytest_memleak.hooks.running import RunningTest

        card = choose(self._settings.backend, plan.cap, self._settings.cards)
        if not plan.marked and not plan.baseline and card.backend == "cpu":
            return
        garbage.begin_session()
        when, shown = rerun.when(item, self._settings), self._settings.html is not None
        baseline = self._baseline_of(item, plan, card)
        test = RunningTest(item, plan, card, self._watched, when, shown, self._live, baseline)
        try:
            test.begin()
        except BaseException:
            test.close()
            raise
        self.test = test

    def _baseline_of(self, item: pytest.Item, plan: Plan, card: Card) -> BaselineOfTest | None:
        if not plan.baseline:
            return None
        from pytest_memleak.hooks.baseline_of_test import BaselineOfTest

        return BaselineOfTest(item, card, plan.cap, self._wider_memory)

    def _another_plugin_runs(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Lets plugins that run tests in their own way (reruns, forks) do so: they report after the teardown too."""
        manager = item.config.pluginmanager
        ours = (self, manager.getplugin("runner"))
        arguments = {"item": item, "nextitem": nextitem}
        for hook in reversed(item.ihook.pytest_runtest_protocol.get_hookimpls()):
            if hook.plugin in ours or hook.wrapper or hook.hookwrapper:
                continue
            if hook.function(*(arguments[name] for name in hook.argnames)):
                return True
        return False

    def _amend_call_report(self, test: RunningTest) -> None:
        report = test.call_report
        if report is None or not test.body_passed or test.call_logged:
            return
        if test.leaked:
            text = failure_text(test.results)
            call = pytest.CallInfo.from_call(lambda: pytest.fail(text, pytrace=False), when="call")
            # Through the hook, so that xfail and the like mean what they mean for any other failure.
            leaked = test.item.ihook.pytest_runtest_makereport(item=test.item, call=call)
            kept = {name: getattr(report, name) for name in ("duration", "start", "stop") if hasattr(report, name)}
            report.__dict__.pop(WITHHELD, None)
            report.__dict__.update(leaked.__dict__ | kept)
        elif test.has("inconclusive") and report.passed:
            setattr(report, WITHHELD, True)
