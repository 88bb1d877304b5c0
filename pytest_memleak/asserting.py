"""What tensors hold, asserted at once and without a marker: `pytest_memleak.no_nan` and `.same_on_all_ranks`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_memleak.blocks import enforce
from pytest_memleak.checks import same
from pytest_memleak.checks.no_nan import judge_no_nan
from pytest_memleak.checks.same import judge_same
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.meters.reading import PREDICTED
from pytest_memleak.ranks import world
from pytest_memleak.records.record import CheckResult
from pytest_memleak.values.exchange import Exchange
from pytest_memleak.values.found import Scan
from pytest_memleak.values.inside import simulated
from pytest_memleak.values.looks import Look
from pytest_memleak.values.named import GRADIENT, LOSS, STATE, Named, of_anything, of_optimizer
from pytest_memleak.values.norms import infinite_norm
from pytest_memleak.values.scan import scan
from pytest_memleak.values.summary import summary

if TYPE_CHECKING:
    import torch
    from torch import nn

_calls = itertools.count()
"""All ranks make the same calls, in the same order."""


def no_nan(given: object, gradients: bool, optimizer: torch.optim.Optimizer | None, losses: object) -> None:
    __tracebackhide__ = True
    try:
        named = list(of_anything(given, gradients=gradients))
        rest = list(of_anything(losses, kind=LOSS, name="losses")) if losses is not None else []
    except TypeError as error:
        raise BadInput(f"no_nan: {error}") from None
    rest += of_optimizer(optimizer) if optimizer is not None else []
    found = scan(named)
    asked = {GRADIENT: gradients, STATE: optimizer is not None, LOSS: losses is not None}
    wanted = [kind for kind, is_asked in asked.items() if is_asked]
    enforce([_judged(found, scan(rest), _overflows(named, found) if gradients else [], wanted)])


def same_on_all_ranks(model: nn.Module) -> None:
    __tracebackhide__ = True
    if not hasattr(model, "named_modules"):
        raise BadInput(f"same_on_all_ranks: {model!r:.200} is no module")
    try:
        result = judge_same("", Exchange(f"call {next(_calls)}"), [summary(model)], _how())
    except Inconclusive as error:
        result = same.inconclusive("", str(error))
    enforce([result])


def _judged(found: Scan, rest: Scan, overflows: Iterable[str], wanted: list[str]) -> CheckResult:
    looks = [Look("what was given", "", found=found)]
    return judge_no_nan(None, looks, rest, list(overflows), how=_how(), rank=world.current(), wanted=wanted)


def _overflows(named: Iterable[Named], found: Scan) -> list[str]:
    gradients = [one for one in named if one.kind == GRADIENT]
    names = {one.name for one in gradients}
    if found.bad:
        return []
    largest = infinite_norm(gradients, [one for one in found.largest if one.name in names])
    return [f"the norm of all gradients is infinite: {largest}"] if largest else []


def _how() -> str:
    return PREDICTED if simulated() else "measured"
