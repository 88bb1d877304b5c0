"""What a test promised of values: which models are looked into, and when; what is poisoned, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_memleak.checks import same
from pytest_memleak.checks.no_nan import NO_MODEL, judge_no_nan
from pytest_memleak.checks.same import judge_same
from pytest_memleak.errors import Inconclusive, Unavailable
from pytest_memleak.hooks.chosen import made_before, named_models
from pytest_memleak.hooks.gradients import GradientLooks
from pytest_memleak.meters.reading import PREDICTED
from pytest_memleak.plan import Plan
from pytest_memleak.ranks import world
from pytest_memleak.records.record import CheckResult
from pytest_memleak.upstream import watched
from pytest_memleak.upstream.poison import Poison
from pytest_memleak.values.exchange import Exchange
from pytest_memleak.values.found import Scan
from pytest_memleak.values.looks import Look, Looks
from pytest_memleak.values.named import of_module
from pytest_memleak.values.scan import scan
from pytest_memleak.values.summary import Summary, summary

if TYPE_CHECKING:
    from pytest_memleak.events.places import Place
    from pytest_memleak.hooks.running import RunningTest
    from pytest_memleak.upstream.loads import Seen

TWICE = (
    "no_nan: the test ran twice, first with its uninitialized memory filled with NaN, then without: filling commits "
    "the pages that its other budget counts"
)

LIFTED = (
    "the test has switched the filling of uninitialized memory off itself (torch.use_deterministic_algorithms, "
    "torch.utils.deterministic): leave it on, or say no_nan(poison=False)"
)
OLDER = (
    "its model was made in {where}, before uninitialized memory was filled with NaN: make it in the test or in a "
    "function fixture, or say no_nan(poison=False), which looks at what happens to be there"
)


def runs_apart(plan: Plan, backend: str) -> bool:
    """Whether poison would be in the numbers of another promise: it commits pages, and allocates nothing."""
    committed = (plan.host_peak is not None and backend != "simulated") or (
        plan.leak is not None and plan.leak.of == "host"
    )
    return plan.no_nan is not None and plan.no_nan.poison and committed


class Values:
    """One test's."""

    def __init__(self, test: RunningTest) -> None:
        plan = test.plan
        self._test = test
        self._no_nan, self._same = plan.no_nan, plan.same
        self._poison = Poison() if plan.no_nan is not None and plan.no_nan.poison else None
        self._gradients = GradientLooks(self._scan) if plan.no_nan is not None and plan.no_nan.gradients else None
        self._scans = self._new_scans()
        self._summaries = Looks(summary, at_loads=False)
        self._scanned: list[Look[Scan]] = []
        self._summed: list[Look[Summary]] = []
        self._lifted = False
        """The program has switched the poison off."""
        self._made_before = ""
        """Where the models were made, if that was before there was poison."""
        self._is_over = False
        """An earlier run was the one to be judged for NaN, or was bad already."""
        self._told = False
        self._was_read = False
        self.notes: tuple[str, ...] = ()

    def begin(self) -> None:
        """Before the windows open."""
        if runs_apart(self._test.plan, self._test.card.backend):
            if not hasattr(self._test.item, "_initrequest"):
                assert self._no_nan is not None
                raise Unavailable(
                    f"{self._no_nan.source}: no_nan(poison=True) beside a budget on committed memory needs two runs "
                    f"with fresh fixtures, and {self._test.item.name!r} is of {type(self._test.item).__name__}: make "
                    "it a test function, or two tests, or say poison=False"
                )
            self.notes = (TWICE,)
        observer = self._test.measurement.observer
        if observer is not None and (self._no_nan is not None or self._same is not None):
            observer.listener = self
        if self._gradients is not None:
            self._gradients.begin(self._name_of)
        self.resume()

    def resume(self) -> None:
        if self._poison is not None:
            self._poison.on()

    def pause(self) -> None:
        """A wider fixture's memory is not the test's."""
        if self._poison is not None:
            self._poison.off()

    def end(self) -> None:
        """May be called again."""
        self.pause()
        self._poison = None
        if self._gradients is not None:
            self._gradients.end()
        observer = self._test.measurement.observer
        if observer is not None and (self._same is None or not self._is_over):
            observer.listener = None

    def run_ended(self) -> None:
        """A body has returned; its fixtures are still there."""
        self._lifted |= self._poison is not None and self._poison.is_lifted
        if self._no_nan is not None and not self._is_over:
            self._scanned = self._look(self._scans, self._no_nan.model)
            if self._poison is not None:
                observer = self._test.measurement.observer
                self._made_before = made_before(self._test.item, self._no_nan.model, observer)
        if self._same is not None:
            self._summed = self._look(self._summaries, None)
        if self._gradients is not None:
            self._gradients.body_ended()

    def poisoned_run_ended(self) -> None:
        """From now on memory is as it comes, and what is found in it is no longer judged."""
        self.run_ended()
        self._is_over = True
        self.end()

    def run_begins(self) -> None:
        """Another run: its models are others. What was bad in the last one stays bad."""
        self._is_over |= any(look.found is not None and look.found.bad for look in self._scanned)
        self._scans = self._new_scans()
        self._summaries = Looks(summary, at_loads=False)

    def judge(self, doubts: Sequence[str]) -> list[CheckResult]:
        """After the body's end."""
        self.run_ended()
        results = []
        predicted = self._test.card.backend == "simulated"
        how = PREDICTED if predicted else "measured"
        if self._no_nan is not None:
            gradients = self._gradients
            results.append(
                judge_no_nan(
                    self._no_nan,
                    self._scanned,
                    gradients.found if gradients is not None else None,
                    gradients.overflows if gradients is not None else (),
                    how=how,
                    rank=world.current(),
                    blind=f"{NO_MODEL}{self._test.names.offer}",
                    doubts=[*doubts, *self._doubts()],
                )
            )
        if self._same is not None:
            results.append(self._judge_same(how, doubts))
        return results

    def _doubts(self) -> list[str]:
        """Why there may be values that nobody wrote, and no NaN."""
        older = self._made_before
        return [*([LIFTED] if self._lifted else []), *([OLDER.format(where=older)] if older else [])]

    def body_failed(self, why: str) -> None:
        """Other ranks are not to wait for what this one holds."""
        if self._same is None or self._told:
            return
        self._told = True
        try:
            Exchange(self._exchange_name()).failed(why)
        except Exception:  # noqa: BLE001 – the body's own failure is what counts, and a store may be gone
            return

    def _judge_same(self, how: str, doubts: Sequence[str]) -> CheckResult:
        assert self._same is not None
        source = self._same.source
        self._told = True
        looks = self._summed
        why = next((f"{look.title}: {look.failed}" for look in looks if look.failed), "")
        try:
            exchange = Exchange(self._exchange_name())
            if why or doubts or not looks:
                why = why or "; ".join(doubts) or same.NO_MODEL
                exchange.failed(why)
                return same.inconclusive(source, why)
            return judge_same(source, exchange, [look.found for look in looks if look.found is not None], how)
        except Inconclusive as error:
            return same.inconclusive(source, why or str(error))

    def _exchange_name(self) -> str:
        return f"{self._test.item.nodeid}/{self._test.attempt}"

    # What the observer of models tells.

    def model_loaded(self, seen: Seen, model: nn.Module) -> None:
        if self._no_nan is not None and not self._is_over:
            self._scans.model_loaded(seen, model)

    def module_ends(self, seen: Seen | None, module: nn.Module) -> None:
        if self._test.body_over:
            return  # it was looked into at the body's end
        if seen is None:
            if not any(ref() is module for ref in watched.watched_modules()):
                return
            seen = _seen_by_name(module)
        if self._no_nan is not None and not self._is_over:
            self._scans.model_ends(seen, module)
        if self._same is not None:
            self._summaries.model_ends(seen, module)

    def _new_scans(self) -> Looks[Scan]:
        return Looks(self._scan_model, at_loads=True, is_bad=lambda found: found.bad)

    def _scan_model(self, model: nn.Module) -> Scan:
        return self._scan(of_module(model, gradients=self._no_nan is not None and self._no_nan.gradients))

    def _scan(self, named: Any) -> Scan:
        self._was_read = False
        return scan(named, self._place_of)

    def _place_of(self, tensor: torch.Tensor) -> Place | None:
        if not self._was_read:  # CUDA's history is not asked for every tensor
            for recording in self._test.measurement.recordings:
                recording.read()
            self._was_read = True
        found = (recording.place_of(tensor) for recording in self._test.measurement.recordings)
        return next((place for place in found if place is not None), None)

    def _name_of(self, parameter: torch.Tensor) -> str:
        """In the first model that has it."""
        observer = self._test.measurement.observer
        for _, model in observer.living() if observer is not None else ():
            for name, own in nn.Module.named_parameters(model):
                if own is parameter:
                    return name
        return ""

    def _look(self, looks: Looks[Any], named: object) -> list[Look[Any]]:
        """Into the model that the marker names, else those that the test watches, else all that it made."""
        chosen = named_models(self._test.item, named)
        if chosen is not None:
            return looks.of(chosen) if isinstance(chosen, list) else [Look("the model", "", failed=chosen)]
        observer = self._test.measurement.observer
        looks.body_ended(observer.living() if observer is not None else [])
        found = looks.all()
        # A model that is on meta beside real ones was made to be looked at.
        real = [look for look in found if look.failed or look.loaded or not _is_planned(look.found)]
        return real or found


def _is_planned(found: Scan | Summary | None) -> bool:
    if isinstance(found, Scan):
        return bool(found.unmaterialized) and not found.looked and not found.unknown
    if isinstance(found, Summary):
        return bool(found.tensors) and not any(said.bits for said in found.tensors.values())
    return False


def _seen_by_name(module: nn.Module) -> Seen:
    from pytest_memleak.upstream.loads import Seen

    return Seen(0, type(module).__name__)
