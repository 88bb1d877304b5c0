"""A run and its baseline: read before any test runs, and changed after the last one. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pytest_memleak.errors import BadInput, MemleakError, Unavailable
from pytest_memleak.hooks.selection import Selection
from pytest_memleak.records.attributes import RECORD
from pytest_memleak.records.baselines import Baseline, Entry
from pytest_memleak.records.baselines.attempts import Attempts
from pytest_memleak.records.baselines.entry import recorded_as
from pytest_memleak.records.baselines.locking import locked
from pytest_memleak.records.baselines.ratchet import Changes, changes, compare
from pytest_memleak.records.baselines.terms import Terms
from pytest_memleak.records.baselines.told import Told
from pytest_memleak.records.baselines.unmatched import unmatched
from pytest_memleak.records.record import Verdict
from pytest_memleak.report import files
from pytest_memleak.settings import Settings
from pytest_memleak.settings.in_ci import ci_variable
from pytest_memleak.workers.need import RECORDED


@dataclass(frozen=True)
class InForce:
    """The baseline of a run, as it was when the run began."""

    terms: Terms
    baseline: Baseline
    is_there: bool
    """There is such a file."""


IN_FORCE = pytest.StashKey[InForce]()
"""On the config of a run with a baseline."""


def begin(config: pytest.Config, settings: Settings, *, reporting: bool) -> BaselineRun | None:
    """`reporting`: reports are made in this process, and so it is the one that writes."""
    terms = settings.baseline
    if terms is None:
        return None
    config.stash[IN_FORCE] = in_force = _read(terms)
    config.stash[RECORDED] = in_force.baseline.highest("real")
    selection = Selection(config)
    config.pluginmanager.register(selection, "memleak-selection")
    if not reporting:
        return None
    _check(in_force)
    run = BaselineRun(config, in_force, selection)
    config.pluginmanager.register(run, "memleak-baseline")
    return run


def _read(terms: Terms) -> InForce:
    try:
        return InForce(terms, Baseline.read(terms.path, settle=bool(terms.update)), is_there=True)
    except FileNotFoundError:
        return InForce(terms, Baseline(), is_there=False)
    except BadInput as error:
        raise pytest.UsageError(f"{terms.source}: {error}") from None


def _check(in_force: InForce) -> None:
    terms = in_force.terms
    if not in_force.is_there and not terms.makes_the_file and (variable := ci_variable()):
        raise pytest.UsageError(
            f"{terms.source}: there is no file {terms.shown!r}, and {variable} is set: nothing would be held against "
            "it. Make it with --memleak-update=new where you work, and commit it"
        )
    if terms.update:
        try:
            files.check_writable(terms.path, "baseline")
        except BadInput as error:
            raise pytest.UsageError(f"{terms.source}: {error}") from None


class BaselineRun:
    """Where reports are made: in xdist's controller, else the only process."""

    def __init__(self, config: pytest.Config, in_force: InForce, selection: Selection) -> None:
        self.told: Told | None = None
        """When the run has ended."""
        self.failed = ""
        """Why the file could not be written."""
        self._config = config
        self._in_force = in_force
        self._selection = selection
        self._attempts = Attempts()
        self._verdicts: dict[str, set[Verdict]] = {}
        """Of the last attempt of each test."""
        self._unseen: set[str] = set()
        """Tests of which that could not tell what they take."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        record: dict[str, Any] = getattr(report, RECORD, {})
        if record:
            self._verdicts[report.nodeid] = {
                result["verdict"] for result in record["results"] if result["recorded"] is not None
            }
        entry = record.get("baseline")
        if report.when == "teardown":
            (self._unseen.add if record and not entry else self._unseen.discard)(report.nodeid)
        self._attempts.phase(
            report.nodeid,
            report.when,
            good=report.outcome == "passed" and not hasattr(report, "wasxfail"),
            worker=getattr(report, "worker_id", ""),
            entry=Entry.from_json(entry) if entry else None,
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        in_force, attempts = self._in_force, self._attempts
        terms = in_force.terms
        narrowed = self._selection.narrowed(attempts.tests)
        found = compare(
            in_force.baseline,
            attempts.measured,
            terms.allowed,
            unfinished=self._unfinished(),
            whole=not narrowed,
        )
        made = changes(found, terms.update)
        written = False
        if made.of or in_force.baseline.settled or (terms.makes_the_file and not in_force.is_there and attempts.tests):
            try:
                write(terms, made)
                written = True
            except MemleakError as error:
                self.failed = f"--memleak-update: {error}"
                # The tests have run: their results stand, and the exit status says that something is missing.
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        verdicts = self._verdicts.values()
        self.told = Told(
            terms,
            entries=len(in_force.baseline),
            is_there=in_force.is_there,
            compared=sum(not verdict.isdisjoint(("pass", "fail")) for verdict in verdicts),
            above=sum("fail" in verdict for verdict in verdicts),
            found=found,
            narrowed=narrowed,
            written=written,
            settled=in_force.baseline.settled,
            unmatched=None if any(verdicts) else unmatched(in_force.baseline, found.missing, whole=not narrowed),
            ci=ci_variable(),
        )
        if self.told.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def _unfinished(self) -> set[str]:
        """Tests of which this run can say nothing, as an entry calls them."""
        ended = self._attempts.tests
        unknown = {key.test for key in self._in_force.baseline.entries if key.test not in ended}
        reported = self._attempts.unfinished | self._unseen
        return set().union(*map(recorded_as, reported), filter(self._selection.is_open, unknown))


def write(terms: Terms, made: Changes) -> None:
    """Into the file as it is now, whoever has changed it since the run began."""
    try:
        path = terms.path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            now = _read_now(terms)
            files.write(path, made.applied_to(now).render(), "baseline")
    except (OSError, RuntimeError) as error:  # of links in a circle the latter; `files` names its own
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        raise Unavailable(
            f"{terms.shown} was not written ({why}), and is as it was: see that its folder can be read and written, "
            "and run again"
        ) from error


def _read_now(terms: Terms) -> Baseline:
    try:
        return Baseline.read(terms.path, settle=True)
    except FileNotFoundError:
        return Baseline()
