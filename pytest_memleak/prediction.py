"""What a program would take of a card that is not there: `pytest_memleak.predict`."""

from __future__ import annotations

import contextlib
import gc
import inspect
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from pytest_memleak.budget.sizes import format_size, parse_size
from pytest_memleak.cards.simulated.process import this_process_s
from pytest_memleak.cards.simulated.profiles import (
    DEFAULT,
    MOST_MEMORY,
    PROFILES,
    Profile,
    of_size,
    profile_of,
    several,
)
from pytest_memleak.cards.simulated.recording import SimulatedRecording
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.events import callbacks
from pytest_memleak.ledger.at_peak import groups_of, lines_of
from pytest_memleak.meters import shared
from pytest_memleak.records.record import AtPeak
from pytest_memleak.wording import plural


@dataclass(frozen=True)
class PredictedCard:
    """The card that a predicted program is given."""

    name: str
    total: int
    """Its size in bytes, as the program is told."""
    device: str = "cuda:0"
    backend: str = "simulated"


@dataclass(frozen=True)
class Prediction:
    """Bytes that were predicted, none of them measured."""

    card: PredictedCard
    fits: bool
    """False if the program ended with torch.OutOfMemoryError."""
    requested_peak: int
    allocated_peak: int
    reserved_peak: int
    requested: int
    """Held when the program had returned, with what it returned."""
    allocated: int
    reserved: int
    host_peak: int
    """The most CPU tensors that were alive at a time, over those that were there before."""
    at_peak: tuple[AtPeak, ...]
    """What was alive when most was allocated, by line, the largest first."""
    refusal: str = ""
    """What torch said if it does not fit."""
    refused: int = 0
    """How many allocations were refused, whether or not the program caught that."""
    margin: int = 0
    """How much higher the peak may be: what some kernels take for themselves is not simulated."""
    doubt: str | None = None
    """Why the program may go another way on a real card; then none of the numbers can be relied on."""
    placeholders: int = 0
    """Numbers that the program read and that nobody knows: a loss to log, a norm."""
    presumed: tuple[str, ...] = ()
    """What was the prediction's choice, where a card would decide: the order in which threads of a load run."""

    def __str__(self) -> str:
        rows = {
            "requested": (self.requested_peak, self.requested),
            "allocated": (self.allocated_peak, self.allocated),
            "reserved": (self.reserved_peak, self.reserved),
        }
        lines = [f"predicted for {self.card.name} ({format_size(self.card.total)}): {self.verdict}"]
        for name, (peak, end) in rows.items():
            lines.append(f"  {name + ' peak':<14} {format_size(peak):>10}, {format_size(end)} at the end")
        lines.append(f"  {'host peak':<14} {format_size(self.host_peak):>10} of CPU tensors")
        if self.margin:
            lines.append(f"  at most {format_size(self.margin)} more at the peak, by kernels' own memory")
        if self.refusal:
            lines.append(f"  {in_short(self.refusal)}")
        if self.placeholders:
            count = plural(self.placeholders, "value that was", "values that were")
            lines.append(f"  {count} read and that nobody knows: placeholders")
        lines += [f"  {remark}" for remark in self.presumed]
        if self.at_peak:
            lines += ["  alive when most was allocated:", *(f"    {line}" for line in lines_of(self.at_peak))]
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        if self.doubt:
            return f"INCONCLUSIVE: {self.doubt}"
        return "fits" if self.fits else "does not fit"


def predict(fn: Callable[[PredictedCard], object], card: str | int = DEFAULT) -> Prediction:
    """Runs `fn` on a simulated card in this process: no GPU is needed, and torch is left as it was.

    `card` is a size (`"24G"`: all of it can be had) or the name of a card (`"rtx3090"`: less what its context takes).
    """
    return predict_on(fn, profile_for(card))


def predict_on(fn: Callable[[PredictedCard], object], profile: Profile) -> Prediction:
    """The same on a card that need not have a name."""
    given = PredictedCard(profile.name, profile.total)
    simulation = this_process_s()
    presuming = simulation.presumptions.without_outliers()
    with _alone(), _torch_as_it_was(), callbacks.whole(), simulation.other_cards([profile]), presuming:
        allocator = simulation.allocator(0)
        recording = SimulatedRecording(simulation)
        window = shared.cpu_tensors().window()
        window.open()
        simulation.margins.take(0)
        recording.begin()
        try:
            kept, refusal = _run(fn, given)
        finally:
            recording.end()
            host = window.close()
        gc.collect()
        held = {"requested": allocator.requested, "allocated": allocator.allocated, "reserved": allocator.reserved}
        margin = max(0, simulation.margins.take(0) - recording.peaks["allocated"])
        doubt = simulation.unknowns.doubt()
        if doubt is None and not refusal and margin > allocator.total - allocator.others - recording.peaks["reserved"]:
            doubt = f"{format_size(margin)} more than fits may be wanted at the peak: {simulation.margins}"
        at_peak = groups_of(recording.read().held)
        if kept is not None:  # else all that it made has been collected
            del kept
            gc.collect()  # what it made must not outlive the card
        return Prediction(
            card=given,
            fits=not refusal,
            **{f"{name}_peak": level for name, level in recording.peaks.items()},
            **held,
            host_peak=host.peak["allocated"] - host.base["allocated"],
            at_peak=at_peak,
            refusal=refusal,
            refused=recording.refused,
            margin=margin,
            doubt=doubt,
            placeholders=sum(simulation.unknowns.placeholders.values()),
            presumed=simulation.presumptions.remarks(),
        )


def in_short(refusal: str) -> str:
    """What was asked for and what was left; torch's advice and its other figures can be done without."""
    return re.split(r"(?<=free\.) ", refusal)[0]


def profile_for(card: str | int) -> Profile:
    """The card that a user means by a size or a name."""
    if isinstance(card, str) and card.lower() in PROFILES:
        return profile_of(card)
    if isinstance(card, str) and several(card)[0] != 1:
        raise BadInput(
            f"card={card!r}: a prediction is for one card; for several there are tests with "
            f"--gpu-backend=simulated:{card}"
        )
    try:
        size = parse_size(card)
    except BadInput as error:
        raise BadInput(
            f"card={card!r} is neither a size nor a card that can be simulated ({', '.join(sorted(PROFILES))}): {error}"
        ) from None
    if size > MOST_MEMORY:
        raise BadInput(f"card={card!r}: a simulated card has {format_size(MOST_MEMORY)} at most")
    return replace(of_size(size), name=f"a card of {format_size(size)}", context=0)


def _run(fn: Callable[[PredictedCard], object], card: PredictedCard) -> tuple[object, str]:
    """What it returned, or torch's words if the card was too small. The error itself would keep tensors alive."""
    try:
        made = fn(card)
        _require_run(made)
        return made, ""
    except torch.OutOfMemoryError as error:
        return None, str(error).partition("\n")[0]


def _require_run(made: object) -> None:
    """What is only begun by a call has taken nothing."""
    if inspect.iscoroutine(made):
        made.close()
        raise BadInput(
            "the program returned a coroutine, which has not run: give a function that runs it (asyncio.run)"
        )
    if inspect.isasyncgen(made) or inspect.isgenerator(made):
        raise BadInput(
            "the program returned a generator, which has not run: give a function that goes through it, and returns "
            "what is to be kept"
        )
    if inspect.isawaitable(made):
        raise BadInput("the program returned something to be awaited: give a function that returns when it is done")


_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A process has one simulated card at a time; a program may predict another, which is the same thread."""
    if not _one_at_a_time.acquire(blocking=False):
        raise Unavailable(
            "another thread of this process predicts at the moment, and they would count each other's memory: predict "
            "one after the other, or each in a process of its own"
        )
    try:
        yield
    finally:
        _one_at_a_time.release()


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """What a program sets for the whole process and may leave so."""
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(gradients)
