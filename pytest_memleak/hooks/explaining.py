"""Why a peak broke its promise: what was recorded of a test, and a look at who held what when the promise broke."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.card import Card
from pytest_memleak.checks.peak import evaluate
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.events.places import Place
from pytest_memleak.events.recording import NEVER, Recording
from pytest_memleak.hooks.rerun import KNOWN_PEAKS
from pytest_memleak.insides import named_holders
from pytest_memleak.ledger.at_peak import groups_of, lines_of, rest_of, unseen_of
from pytest_memleak.ledger.moment import Moment, look, see
from pytest_memleak.meters import shared
from pytest_memleak.meters.reading import COMMITTED, PREDICTED
from pytest_memleak.plan import Budget, Plan
from pytest_memleak.records.record import CheckResult
from pytest_memleak.settings import ALWAYS
from pytest_memleak.settings import NEVER as NEVER_EXPLAIN

if TYPE_CHECKING:
    from pytest_memleak.hooks.running import RunningTest
    from pytest_memleak.ledger.examples import Example

_NOBODY_LOOKED = (
    "who held it was not looked at: no model was there yet to say what the limit comes to, or the peak passed too "
    "quickly; "
    "--memleak-explain=rerun runs the test once more, and looks when it gets there"
)
LARGE = 4 << 20
"""Blocks of so many bytes take longer to be filled than to be asked where they come from: within 2 %
(benchmarks/explaining.py)."""
NOT_TINY = 1 << 10
"""For a promise about values, where each tensor of a model is to be known by its line: most parameters are larger."""

_NOTHING_LARGE = (
    f"alive at the peak: no block of {format_size(LARGE)} or more; --memleak-explain=always tells the lines of smaller "
    "ones"
)
_OF_ALL = "alive at the peak, by the line that allocated it ({} % of it):"
_OF_TENSORS = "alive when tensors of the CPU took most, by the line that allocated it ({} % of the growth):"
_NO_LARGE_TENSOR = f"alive at the peak: no tensor of the CPU of {format_size(LARGE)} or more"
_TENSORS_WERE_LESS = "who held it was not looked at: that is done when tensors of the CPU alone go beyond the limit"
_NOT_RECORDED = (
    "which lines allocated what was alive was not recorded, which takes time on this card: --memleak-explain=always "
    "records, rerun does so for tests that fail"
)
_PEAKS = ("max_peak", "max_host_peak")
_EACH, _ALL = 2.0, 6.0
"""Seconds that one look may take, and all of a test's."""
_STEP = 1.02
"""How much more must be held for another look; the more of the time is spent, the more: the last look is to be high."""
_UNKNOWN_LIMIT = 1.5
"""How much more must be held until a limit that has no value yet is asked for again."""
_LEAST = 1 << 20


def recordings_for(plan: Plan, card: Card, when: str) -> tuple[list[Recording], int]:
    """What is recorded of a test, and of how large blocks."""
    has_peak = plan.peak is not None or plan.host_peak is not None or plan.cap is not None or plan.baseline
    if when == NEVER_EXPLAIN or not (has_peak or plan.no_nan is not None):
        return [], 0
    # A real card has no places of its blocks to tell, unless everything is recorded.
    found = card.recordings() if has_peak or card.backend != "real" or when == ALWAYS else []
    if (plan.host_peak is not None or plan.no_nan is not None) and card.backend != "cpu":
        found += shared.cpu_recordings()
    return found, 0 if when == ALWAYS else NOT_TINY if plan.no_nan is not None else LARGE


def _cannot_record(card: Card) -> str | None:
    reason = shared.cpu_memory().fallback_reason if card.backend == "cpu" else None
    return reason and f"what was alive at the peak was not recorded: {reason}"


class Explaining:
    """One test's. It looks on the way up, and the last look is the one that counts: nobody knows a peak before it."""

    def __init__(self, test: RunningTest, when: str, shown: bool = False) -> None:
        """`shown`: what was alive at a peak is wanted of promises that were kept, too."""
        self._test = test
        self._shown = shown
        self._limits: dict[int, int] = {}
        """What limits came to when they were last asked for, by the identity of their budget."""
        self._recordings = test.measurement.recordings
        self._moments: dict[str, Moment] = {}
        self._examples: dict[str, Mapping[Place, Example]] = {}
        self._failures: dict[str, str] = {}
        self._spent = 0.0
        self._reason = None if self._recordings or when == NEVER_EXPLAIN else _cannot_record(test.card)
        self.step = _STEP
        self._known = test.item.stash.get(KNOWN_PEAKS, {})

    def begin(self) -> None:
        for recording in self._recordings:
            recording.watch(_Watch(self, recording), 0)

    def end(self) -> None:
        for recording in self._recordings:
            recording.watch(None)

    def look(self, recording: Recording, level: int, asked: int, refused: bool) -> bool:
        """False if there was no time for it."""
        if self._spent > _ALL or (refused and self._test.expected.expecting):
            return False
        began = time.monotonic()
        try:
            with shared.host_aside():
                self._look(recording, level, asked, refused)
        except Exception as error:  # noqa: BLE001 – it walks through other people's objects; the verdict stands without
            self._failures[recording.device] = f"who held it could not be explained: {error!r}"
        self._spent += time.monotonic() - began
        self.step = _STEP + (self._spent / _ALL) ** 2
        return True

    def _look(self, recording: Recording, level: int, asked: int, refused: bool) -> None:
        roots = named_holders(self._test.item, self._test.wider)
        moment = look(recording, level, asked, refused, roots, _EACH)
        # What is gone by the next look may still be what a line's blocks are known by.
        examples = {**self._examples.get(recording.device, {}), **moment.examples}
        self._moments[recording.device], self._examples[recording.device] = moment, examples

    @property
    def hidden(self) -> bool:
        """Whether what is allocated now is left out of the peak."""
        return self._test.measurement.warming.hidden

    @property
    def is_making(self) -> bool:
        return self._test.measurement.workspaces.making

    def saw_holders(self, recording: Recording) -> bool:
        moment = self._moments.get(recording.device)
        return moment is None or bool(moment.holders)

    def limit_of(self, device: str) -> int | None:
        """What may be allocated there, as far as that is known by now."""
        if device in self._known:
            return self._known[device]
        plan = self._test.plan
        if plan.peak is not None and plan.peak.of in (None, "allocated") and device != "host":
            return self._value(plan.peak)
        if plan.host_peak is not None and device == "cpu":
            return self._value(plan.host_peak)
        baseline = self._test.baseline
        limit = baseline.limit_of(device) if baseline is not None else None
        return NEVER if limit is None else limit

    def _value(self, budget: Budget) -> int | None:
        names = self._test.names
        for meaning in (names.term, names.expected):
            with contextlib.suppress(Inconclusive, BadInput):
                value = evaluate(budget, functools.partial(meaning, budget)).bytes
                self._limits[id(budget)] = value
                return value
        return None

    def ask_limits(self) -> None:
        """Those about a fixture's model are known before the body runs, and not only when it allocates."""
        for budget in (self._test.plan.peak, self._test.plan.host_peak):
            if budget is not None and str(budget.model).startswith("fixture:"):
                self._value(budget)

    def known_limit(self, budget: Budget) -> int | None:
        """What it came to when it was last asked for. Other threads may ask: no model is looked at here."""
        return self._limits.get(id(budget)) if budget.limit.names else self._value(budget)

    def added_to(self, results: Sequence[CheckResult]) -> list[CheckResult]:
        """The same, and those that failed say why."""
        return [self._explained(result) if result.verdict == "fail" else self._kept(result) for result in results]

    def _recording_of(self, result: CheckResult) -> Recording | None:
        device = "cpu" if result.device == "host" else result.device
        looked = sorted(self._recordings, key=lambda one: one.device not in self._moments)
        return next((one for one in looked if device in (one.device, "")), None)

    def _kept(self, result: CheckResult) -> CheckResult:
        if not self._shown or result.check not in _PEAKS or result.measured is None:
            return result
        recording = self._recording_of(result)
        if recording is None:
            return result
        try:
            held = recording.read().held
            return replace(result, at_peak=groups_of(held, see(recording) if held else {}))
        except Exception:  # noqa: BLE001 – as below; nothing is said of a kept promise, and the page shows no table
            return result

    def _explained(self, result: CheckResult) -> CheckResult:
        recording = self._recording_of(result)
        if recording is None:
            return result if self._reason is None else replace(result, explanation=(self._reason,))
        try:
            return self._with_contents(result, recording)
        except Exception as error:  # noqa: BLE001 – as above
            return replace(result, explanation=(f"what was alive could not be explained: {error!r}",))

    def _with_contents(self, result: CheckResult, recording: Recording) -> CheckResult:
        recorded, moment = recording.read(), self._moments.get(recording.device)
        seen = see(recording) if recorded.held else {}
        groups = groups_of(recorded.held, {**seen, **self._examples.get(recording.device, {})})
        of_process = result.kind == COMMITTED and result.how != PREDICTED
        whole = (result.measured or 0) if of_process else recorded.level
        lines: list[str] = []
        if groups:
            share = round(100 * sum(group.bytes for group in groups) / max(1, whole))
            lines.append(_OF_TENSORS.format(share) if of_process else _OF_ALL.format(share))
            lines += [f"  {line}" for line in lines_of(groups)]
            lines += [f"  {line}" for line in ([] if of_process else rest_of(recorded))]
        elif of_process:
            lines.append(_NO_LARGE_TENSOR)
        else:
            lines.append(_NOTHING_LARGE if recorded.level else _NOT_RECORDED)
        if of_process:
            lines += [f"  {line}" for line in unseen_of(recorded, whole)]
        if moment is not None:
            lines += moment.lines()
        elif failure := self._failures.get(recording.device):
            lines.append(failure)
        else:
            lines.append(_TENSORS_WERE_LESS if of_process and self._spent <= _ALL else _NOBODY_LOOKED)
        return replace(result, explanation=(*lines, *self._test.snapshot.notes), at_peak=groups)


class _Watch:
    """Is called when a level is reached, and says when to be called again."""

    def __init__(self, explaining: Explaining, recording: Recording) -> None:
        self._explaining = explaining
        self._recording = recording
        self._level = 0

    def __call__(self, level: int, asked: int, refused: bool) -> int:
        # What the plugin makes itself will be gone, and no limit is to be asked for from so high up.
        if not self._explaining.is_making:
            self._level = self._next(level, asked, refused)
        return self._level

    def _next(self, level: int, asked: int, refused: bool) -> int:
        if refused:
            self._explaining.look(self._recording, level, asked, refused)
            return level + 1  # another look at this level would only forget that it was too little
        limit = self._explaining.limit_of(self._recording.device)
        if limit is not None and self._explaining.hidden:
            return limit + 1  # what asks is no part of the peak that is to be explained
        if limit is None:
            return max(int(level * _UNKNOWN_LIMIT), level + _LEAST)
        if level <= limit:
            return limit + 1
        if not self._explaining.look(self._recording, level, asked, refused):
            return NEVER
        if not self._explaining.saw_holders(self._recording):
            return limit + 1  # a block that something takes and gives back at once, before there are any tensors
        return max(int(level * self._explaining.step), level + 1)
