"""A measured block of code: what `memory.measure` and `pytest_memleak.measure` give, with pytest and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

from pytest_memleak.budget.expression import parse
from pytest_memleak.budget.model_sizes import ModelSizes
from pytest_memleak.budget.which_model import which_model
from pytest_memleak.cards.card import Card, choose
from pytest_memleak.checks.peak import judge_peak
from pytest_memleak.errors import BadInput, BudgetExceeded, Inconclusive
from pytest_memleak.events.children import ChildWatch
from pytest_memleak.meters.gauge import Window
from pytest_memleak.meters.reading import Reading
from pytest_memleak.plan import PeakBudget
from pytest_memleak.records.record import Block, CheckResult
from pytest_memleak.report.terminal import failure_text
from pytest_memleak.upstream import watched
from pytest_memleak.upstream.loads import ModelObserver
from pytest_memleak.warming import spy_on


def enforce(results: list[CheckResult]) -> None:
    """Raises for a limit that broke or could not be judged."""
    __tracebackhide__ = True
    if any(result.verdict == "fail" for result in results):
        raise BudgetExceeded(failure_text(results), results)
    if any(result.verdict == "inconclusive" for result in results):
        raise Inconclusive(failure_text(results), results)


class Measured:
    """The memory of the card between entering and leaving a block."""

    def __init__(
        self,
        name: str,
        *,
        of: str = "allocated",
        card: Card | None = None,
        when_done: Callable[[Block], None] = lambda block: None,
        when_judged: Callable[[list[CheckResult]], None] = enforce,
    ) -> None:
        self.name = name
        self._of = of
        self._card = card
        self._when_done = when_done
        self._when_judged = when_judged
        self._windows: list[Window] = []
        self._readings: list[Reading] = []
        self._observer = ModelObserver()
        self._children = ChildWatch()
        self._undo = contextlib.ExitStack()
        self._promised: list[tuple[PeakBudget, object]] = []
        self._models: list[ModelSizes] = []
        self._doubts: list[str] = []

    def __enter__(self) -> Measured:
        card = self._card or choose("auto")
        known = card.gauges()[0].gauge.kinds
        if self._of not in known:
            raise BadInput(f"of={self._of!r} cannot be read on {card.device}: it tells {', '.join(known)}")
        self._undo.enter_context(watched.scope())
        self._undo.enter_context(self._observer)
        self._undo.enter_context(spy_on(card, None))  # which keeps their peaks apart
        self._undo.enter_context(self._children)
        self._windows = [gauge.window() for gauge in card.gauges()]
        for window in self._windows:
            window.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        self._close()
        worst = self._worst
        self._when_done(Block(self.name, worst.device, self._of, worst.how, self.peak, self.grown))
        if error is None:
            promised, self._promised = self._promised, []
            for budget, model in promised:
                self._judge(budget, model)

    @property
    def peak(self) -> int:
        """The highest level while the block ran, in absolute bytes; of several devices that of the fullest."""
        return self._worst.told_peak(self._of)

    @property
    def peak_without_warmup(self) -> int:
        """The same without what transformers' allocator warm-ups asked for while they ran."""
        rest = [reading.without_warmup() for reading in self._all]
        return max(rest, key=lambda reading: reading.possible_peak(self._of)).told_peak(self._of)

    @property
    def grown(self) -> int:
        """Held at the end over what was held at the start."""
        return self._worst.grown(self._of)

    def limit(self, limit: str | int, *, model: object = None) -> None:
        """The block's peak must not exceed the limit; said inside the block, it is judged when the block ends."""
        __tracebackhide__ = True
        budget = PeakBudget(parse(limit), f"limit of the block {self.name!r}", of=self._of)
        if self._readings:
            self._judge(budget, model)
        else:
            self._promised.append((budget, model))

    def give_up(self) -> str:
        """Closes a block that was entered and never left; says what was promised and could not be judged."""
        if self._windows and not self._readings:
            self._close()
        promised = ", ".join(f'limit("{budget.limit.text}")' for budget, _ in self._promised)
        return f"{promised} of the block {self.name!r}: the block never ended" if promised else ""

    @property
    def _all(self) -> list[Reading]:
        if not self._readings:
            raise Inconclusive(f"the block {self.name!r} has not ended: read its peak after the with statement")
        return self._readings

    @property
    def _worst(self) -> Reading:
        return max(self._all, key=lambda reading: reading.possible_peak(self._of))

    def _close(self) -> None:
        self._models = watched.watched() or self._observer.models()
        self._doubts = [f"{child} and was not measured" for child in self._children.unmeasured()]
        self._readings = [window.close() for window in self._windows]
        self._undo.close()

    def _judge(self, budget: PeakBudget, model: object) -> None:
        __tracebackhide__ = True
        self._when_judged(
            judge_peak(
                budget,
                self._readings,
                lambda name: which_model(model, self._models).term(name),
                self._doubts,
                check=f"block {self.name!r}",
            )
        )
