"""pytest's hooks that always run: options, markers, collection. Nothing here imports torch.

What happens around a test is in `hooks.measuring`, which is registered only when a collected test asks for something.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import pytest

from pytest_memleak import marks, promises, settings
from pytest_memleak.errors import BadInput
from pytest_memleak.fixtures import card, checkpoint, memory, warmup_spy
from pytest_memleak.plan import Plan, Ranks
from pytest_memleak.ranks.world import joined
from pytest_memleak.records.attributes import RANK
from pytest_memleak.settings import SETTINGS
from pytest_memleak.support import at_least

__all__ = ["card", "checkpoint", "memory", "warmup_spy"]


OWN_MARKS = pytest.StashKey[tuple[pytest.Mark, ...]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    settings.add_options(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """A wrapper, since pytest imports conftests in one of its own: what they import may ask for a card."""
    _simulate(early_config, settings.read_card(early_config))
    return (yield)


def _simulate(config: pytest.Config, read: settings.Settings) -> None:
    if read.backend == settings.SIMULATED:
        from pytest_memleak.hooks.simulating import from_the_start

        from_the_start(config, read)


def pytest_configure(config: pytest.Config) -> None:
    from pytest_memleak.hooks.baselines import begin
    from pytest_memleak.hooks.reporting import Reporting, check_paths
    from pytest_memleak.workers.worker import is_worker

    for line in marks.help_lines():
        config.addinivalue_line("markers", line)
    config.stash[SETTINGS] = read = settings.read(config)
    _simulate(config, read)  # a plugin that a conftest brought along was not asked before
    reporting = not is_worker(config) and not _is_another_rank(config)
    baseline = begin(config, read, reporting=reporting)
    if reporting:
        check_paths(read)
        config.pluginmanager.register(Reporting(config, read, baseline), "memleak-reporting")
    if not at_least(pytest.__version__, "9"):
        from pytest_memleak.hooks.marked_fixtures import MarkedFixtures

        config.pluginmanager.register(MarkedFixtures(), "memleak-marked-fixtures")


def _is_another_rank(config: pytest.Config) -> bool:
    """What it found is told by the run that has started it, or by rank 0 of an outer torchrun."""
    if config.pluginmanager.hasplugin(RANK):
        return True
    world = joined()
    return world is not None and world.rank > 0


def pytest_report_header(config: pytest.Config) -> list[str]:
    from pytest_memleak.report.header import header_lines

    lines = header_lines(config.stash[SETTINGS])
    if config.getoption("dist", "no") != "no":  # of pytest-xdist: this process starts workers
        from pytest_memleak.hooks import assigning

        lines += assigning.header(config)
    return lines


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> Generator[None, int, int]:
    """Called before `pytest_configure`."""
    from pytest_memleak.hooks import assigning

    return assigning.fewer(config, (yield))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: Sequence[Any]) -> None:
    from pytest_memleak.hooks import assigning

    assigning.deal(config, specs)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    from pytest_memleak.hooks import assigning

    assigning.tell(node.config, node)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Reads every test's markers once, when all plugins and conftests have had their say about them."""
    from pytest_memleak.hooks.attributes import BAD_MARK, PLAN
    from pytest_memleak.hooks.measuring import MeasuredTests

    read = session.config.stash[SETTINGS]
    asked = False
    for item in session.items:
        if ours := marks.own_marks(item):
            item.stash[OWN_MARKS] = ours
        try:
            ranks, plan = promises.read_ranks(item), promises.read_plan(item, read)
            promises.check_ranks(plan, ranks)
        except BadInput as error:
            item.stash[BAD_MARK] = error
            asked = True
            continue
        if ranks is not None and _takes(item, ranks, plan, read):
            continue
        if plan is not None:
            item.stash[PLAN] = plan
            asked = True
    if asked:
        from pytest_memleak.hooks.interrupts import wait_for_callbacks
        from pytest_memleak.hooks.progress import live_line
        from pytest_memleak.hooks.simulating import around_tests

        live = live_line(session.config, read)
        session.config.pluginmanager.register(MeasuredTests(read, live), "memleak-measuring")
        wait_for_callbacks(session.config)
        around_tests(session, read)
    _share_cards(session, read)


def _share_cards(session: pytest.Session, read: settings.Settings) -> None:
    from pytest_memleak.workers.worker import is_worker

    if is_worker(session.config):
        from pytest_memleak.hooks import sharing

        sharing.around_tests(session, read)


def _takes(item: pytest.Item, ranks: Ranks, plan: Plan | None, read: settings.Settings) -> bool:
    """Whether the test runs in other processes, and so has nothing to be measured here."""
    from pytest_memleak.hooks import ranks as hooks_of_ranks

    return hooks_of_ranks.take(item, ranks, plan, read)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Markers are read before the tests run: one that was added since was not looked at, and must not seem to hold."""
    ours = marks.own_marks(item)
    if ours and ours != item.stash.get(OWN_MARKS, ()):
        from pytest_memleak.hooks.unjudged import Refused

        names = ", ".join(f"@pytest.mark.{mark.name}" for mark in ours)
        raise Refused(
            f"{item.nodeid}: its markers ({names}) were changed after the tests were collected, too late to measure "
            "anything: put them on the test, or add them in pytest_collection_modifyitems",
            pytrace=False,
        )


def pytest_report_teststatus(report: pytest.TestReport | pytest.CollectReport) -> tuple[str, str, str] | None:
    """The body of a test without a verdict passed, but "passed" is not what is counted: the error follows."""
    return ("", "", "") if getattr(report, "memleak_withheld", False) else None


def pytest_sessionfinish(session: pytest.Session) -> None:
    from pytest_memleak.workers.worker import is_worker

    if is_worker(session.config):
        from pytest_memleak.hooks.reporting import tell_versions

        tell_versions(session.config)
