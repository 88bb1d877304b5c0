"""Tests with `@pytest.mark.ranks` under an outer torchrun: each of its processes is a run of pytest, and is one rank.

Nothing is started. All ranks run the test; each tells rank 0 what became of it there, whose report is that of all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from _pytest.junitxml import xml_key
from _pytest.runner import runtestprotocol

from pytest_memleak.plan import Plan, Ranks
from pytest_memleak.ranks import group
from pytest_memleak.ranks.choosing import backend_of, kind_of_card
from pytest_memleak.ranks.outcome import outcome
from pytest_memleak.ranks.told import PHASES, Told
from pytest_memleak.ranks.world import World
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.record import TestRecord
from pytest_memleak.report.junit import replace_properties
from pytest_memleak.settings import Settings

_ASKED = pytest.StashKey[tuple[Ranks, "Plan | None"]]()


def leave_files_to_rank_0(config: pytest.Config, world: World) -> None:
    """All ranks have one command line, and so one file of results, which would be that of the last one to end. A name
    that has the rank in it is another one for each."""
    manager = config.pluginmanager
    manager.unregister(name="lfplugin")  # which tests have failed; which are to run is chosen by now
    path = getattr(config.option, "xmlpath", None)
    if path and (xml := config.stash.get(xml_key, None)) is not None and str(world.rank) not in Path(path).name:
        manager.unregister(xml)


class JoinedTests:
    def __init__(self, settings: Settings, world: World) -> None:
        self._settings = settings
        self._world = world
        self._done = 0
        self._store: Any = None

    def take(self, item: pytest.Item, ranks: Ranks, plan: Plan | None) -> None:
        item.stash[_ASKED] = ranks, plan

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        asked = item.stash.get(_ASKED, None)
        if asked is None:
            return None
        ranks, plan = asked
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        with group.ending_after(ranks.timeout or self._settings.ranks_timeout):
            made = runtestprotocol(item, nextitem=nextitem, log=False)
        reports = {report.when: report for report in made if type(report) is pytest.TestReport}
        if ranks.size == self._world.size:
            self._together(item, ranks, plan, reports, [one for one in made if type(one) is not pytest.TestReport])
        for report in reports.values():
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        asked = item.stash.get(_ASKED, None)
        if asked is None:
            return
        ranks, plan = asked
        if ranks.size != self._world.size:
            why = f"wants {ranks.size} ranks, and torchrun has started {self._world.size}"
            raise pytest.skip.Exception(why, _use_item_location=True)
        backend = backend_of(ranks, kind_of_card(self._settings, plan))
        if backend is not None:
            group.begin(backend, self._world)

    def pytest_sessionfinish(self) -> None:
        group.end()

    def _together(
        self, item: pytest.Item, ranks: Ranks, plan: Plan | None, reports: dict[Any, Any], subreports: list[Any]
    ) -> None:
        """Rank 0 waits for the others, as long as a rank may take; the others do not wait for anybody."""
        self._done += 1

        def to_be_sent(report: Any) -> Any:
            return item.config.hook.pytest_report_to_serializable(config=item.config, report=report)

        mine: dict[str, Any] = {
            "reports": {when: to_be_sent(report) for when, report in reports.items()},
            "subreports": [to_be_sent(report) for report in subreports],
        }
        if self._store is None:
            self._store = group.store_of_launcher(self._world)
        store = self._store
        key = f"pytest-memleak/{self._done}/{{}}/{item.nodeid}"
        if self._world.rank:
            store.set(key.format(self._world.rank), json.dumps(mine, default=str))
            return
        told = [Told(0, **mine, ended=True)]
        timeout = ranks.timeout or self._settings.ranks_timeout
        for rank in range(1, self._world.size):
            text = group.wait_for(store, key.format(rank), timeout)
            theirs: dict[str, Any] = json.loads(text) if text else {}
            told.append(Told(rank, **theirs, ended=text is not None))
        phases = outcome(
            item,
            plan,
            self._world.size,
            told,
            lambda one: f"rank {one.rank} of {self._world.size} did not tell its result within {timeout:g} s",
        )
        if phases["setup"].outcome != "passed":
            reports.pop("call", None)  # no body is told of after such a set-up, or the test would have passed as well
        for when in PHASES:
            if when in reports:
                phases[when].write_over(reports[when])
        replace_properties(item.user_properties, TestRecord.from_json(phases["teardown"].attributes[RECORD]))
