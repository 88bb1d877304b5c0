"""Tests with `@pytest.mark.ranks`: their bodies run in processes of their own, and here is what became of them.

In this process such a test has no fixtures and no body. Its set-up starts the ranks and waits for them; then its three
reports are written from theirs. So whatever another plugin does with a test's reports holds for them as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.outcomes import Failed

from pytest_memleak.errors import Unavailable
from pytest_memleak.hooks.joined import JoinedTests, leave_files_to_rank_0
from pytest_memleak.hooks.unjudged import insist, record_refusal, refusing
from pytest_memleak.insides import own_id
from pytest_memleak.plan import Plan, Ranks
from pytest_memleak.ranks.job import TIME_IS
from pytest_memleak.ranks.world import joined
from pytest_memleak.records.attributes import RANK, RECORD
from pytest_memleak.records.record import TestRecord
from pytest_memleak.report.junit import PREFIX, replace_properties
from pytest_memleak.settings import ALWAYS, RERUN, SIMULATED, Settings
from pytest_memleak.support import require_torch

if TYPE_CHECKING:
    from pytest_memleak.ranks.job import Job
    from pytest_memleak.ranks.merging import Phase

_OUTCOME = pytest.StashKey[dict[str, "Phase"]]()
_PLUGIN = "memleak-ranked"


class RanksFailed(Failed):
    """The test failed on some of its ranks; which ones and why is in the report."""


def take(item: pytest.Item, ranks: Ranks, plan: Plan | None, settings: Settings) -> bool:
    """Whether the test's ranks are other processes. In one of those, or in one of an outer torchrun, it is not."""
    manager = item.config.pluginmanager
    if manager.hasplugin(RANK):
        return False
    world = joined()
    ranked = manager.getplugin(_PLUGIN)
    if ranked is None:
        ranked = RankedTests(settings) if world is None else JoinedTests(settings, world)
        if world is not None and world.rank:
            leave_files_to_rank_0(item.config, world)
        manager.register(ranked, _PLUGIN)
    ranked.take(item, ranks, plan)
    return world is None


class RankedTests:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def take(self, item: pytest.Item, ranks: Ranks, plan: Plan | None) -> None:
        """From now on the test's own set-up, body and teardown run in the processes of its ranks alone."""
        taken: Any = item

        def set_up() -> None:
            item.stash[_OUTCOME] = {}
            with refusing(item):
                item.stash[_OUTCOME] = self._run(item, ranks, plan)
            _end_as(item, "setup")

        taken.setup = set_up
        taken.runtest = lambda: _end_as(item, "call")
        taken.teardown = lambda: _end_as(item, "teardown")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        insist(report, call)
        phases = item.stash.get(_OUTCOME, {})
        if not phases:
            record_refusal(report, item)
            return report
        if call.excinfo is None or isinstance(call.excinfo.value, RanksFailed | pytest.skip.Exception):
            took = call.duration
            phases[call.when].write_over(report)
            if call.when == "setup":  # all of it was done there; what is not the others' is the processes' start
                report.duration = max(took - phases["call"].duration - phases["teardown"].duration, report.duration)
        return report

    def _run(self, item: pytest.Item, ranks: Ranks, plan: Plan | None) -> dict[str, Phase]:
        began = time.monotonic()
        require_torch()
        from pytest_memleak.ranks import told
        from pytest_memleak.ranks.launch import launch, require_elastic
        from pytest_memleak.ranks.outcome import outcome

        require_elastic()  # takes seconds, the first time
        kills = told.oom_kills()
        with self._job(item, ranks, plan, began) as job:
            ended = launch(job, shown=item.config.option.capture == "no")
        found = told.read(job, ended)
        _tell_warnings(item, found)
        phases = outcome(item, plan, job.size, found, lambda one: told.why(one, job, found, told.oom_kills() - kills))
        record = TestRecord.from_json(phases["teardown"].attributes[RECORD])
        replace_properties(item.user_properties, record)
        _take_properties(item, found)
        return phases

    @contextlib.contextmanager
    def _job(self, item: pytest.Item, ranks: Ranks, plan: Plan | None, began: float) -> Iterator[Job]:
        from pytest_memleak.ranks.choosing import GPUS, backend_of, kind_of_card, played_cards
        from pytest_memleak.ranks.job import Job

        config = item.config
        args = tuple(map(str, config.invocation_params.args))
        kind = kind_of_card(self._settings, plan)
        with contextlib.ExitStack() as held:
            gpus: tuple[str, ...] = ()
            if kind == GPUS and ranks.backend != "gloo":
                gpus = held.enter_context(self._reserved(item, ranks, plan))
            # Each rank would begin the run's own measurement of coverage anew.
            more: tuple[str, ...] = ("--no-cov",) if config.pluginmanager.hasplugin("_cov") else ()
            if kind == SIMULATED:
                more += (f"--gpu-backend={played_cards(self._settings, ranks.size // ranks.nodes)}",)
            timeout, time_is = _timeout(item, ranks, self._settings, time.monotonic() - began)
            yield Job(
                folder=str(_folder(config)),
                nodeid=own_id(item),
                path=str(item.path),
                args=args,
                more_args=more,
                parent=os.getpid(),
                where=str(config.invocation_params.dir),
                sys_path=tuple(sys.path),
                size=ranks.size,
                nodes=ranks.nodes,
                backend=backend_of(ranks, kind),
                timeout=timeout,
                time_is=time_is,
                cards=gpus,
                options=self._options(),
            )

    @contextlib.contextmanager
    def _reserved(self, item: pytest.Item, ranks: Ranks, plan: Plan | None) -> Iterator[tuple[str, ...]]:
        """A GPU for each rank, as many as there are ranks or none: by the same rules as any test's part of one."""
        from pytest_memleak.hooks.assigning import place_of
        from pytest_memleak.hooks.sharing import reservations_of
        from pytest_memleak.ranks.cards import here
        from pytest_memleak.workers.need import need_of

        place = place_of(item.config)
        there = here(None if place is None else place.callers)
        if len(there) < ranks.size:
            raise Unavailable(
                f"{ranks.source}: {ranks.size} ranks want a GPU each, and there "
                f"{'is' if len(there) == 1 else 'are'} {len(there)}: run it where there are more, or on CPUs "
                "(--gpu-backend=cpu)"
            )
        need = need_of(item, plan, self._settings, parts=1, ranked=True)
        assert need is not None  # ranks always have one
        reservations = reservations_of(item.config)
        patience = self._settings.card_timeout
        try:  # around the taking as well: an interrupt may come right after it
            taken = reservations.take(item.nodeid, need, there, patience, count=ranks.size, beside=True)
            yield taken.names
        finally:
            reservations.give_back()

    def _options(self) -> Mapping[str, str]:
        # One rank that runs once more to be explained would wait for the others.
        return {"memleak_explain": ALWAYS} if self._settings.explain == RERUN else {}


def _timeout(item: pytest.Item, ranks: Ranks, settings: Settings, passed: float) -> tuple[float, str]:
    """And what has set it. Before pytest-timeout strikes here, where nothing is known of the ranks. `passed`: seconds
    of the test until now, which it counts as well."""
    ours = ranks.timeout or settings.ranks_timeout, TIME_IS
    if not any(map(item.config.pluginmanager.hasplugin, ("timeout", "pytest_timeout"))):
        return ours
    mark = item.get_closest_marker("timeout")
    given: Any = (mark.args[0] if mark.args else mark.kwargs.get("timeout")) if mark is not None else None
    if given is None:
        given = getattr(item.config.option, "timeout", None)
    if given is None:
        given = os.environ.get("PYTEST_TIMEOUT")
    if given is None:
        try:
            given = item.config.getini("timeout")
        except (KeyError, ValueError):
            return ours
    try:
        theirs = float(given or 0)
    except (TypeError, ValueError):
        return ours
    left = max(theirs - passed, theirs / 10)
    before = max(left - 2, left / 2)
    return (round(before, 1), f"before the {theirs:g} s of pytest-timeout are over") if 0 < before < ours[0] else ours


def _folder(config: pytest.Config) -> Path:
    """Kept as long as what the fixture tmp_path gives out."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    return Path(factory.mktemp("ranks") if factory is not None else tempfile.mkdtemp(prefix="ranks-"))


def _end_as(item: pytest.Item, when: str) -> None:
    phase = item.stash.get(_OUTCOME, {}).get(when)
    if phase is None or phase.outcome == "passed":
        return
    if phase.outcome == "skipped":
        pytest.skip(phase.reason)  # the ranks' own skip, as theirs
    raise RanksFailed(str(phase.longrepr), pytrace=False)


def _take_properties(item: pytest.Item, told: Any) -> None:
    """What the test has recorded for JUnit: rank 0's, and what others have of another value."""
    known = {str(name): value for name, value in item.user_properties}
    for one in told:
        for name, value in one.reports.get("teardown", {}).get("user_properties", ()):
            if str(name).startswith(PREFIX) or known.get(name) == value:
                continue
            shown = name if name not in known else f"{name} of rank {one.rank}"
            known[shown] = value
            item.user_properties.append((shown, value))


def _tell_warnings(item: pytest.Item, told: Any) -> None:
    """Each once, whoever gave it."""
    for given in {(one["category"], one["text"], one["file"], one["line"]) for rank in told for one in rank.warnings}:
        category, text, file, line = given
        message = warnings.WarningMessage(text, _category(category), file, line)
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
        )


def _category(name: str) -> type[Warning]:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError):
        return UserWarning
    return found if isinstance(found, type) and issubclass(found, Warning) else UserWarning
