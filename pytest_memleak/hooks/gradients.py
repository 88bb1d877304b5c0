"""Gradients, losses and what optimizers keep, looked at as a test trains. Once one is bad, all that follows is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch

from pytest_memleak.upstream.training import Training
from pytest_memleak.values.found import Scan
from pytest_memleak.values.named import LOSS, Named, gradients_of, of_anything, of_optimizer
from pytest_memleak.values.norms import infinite_norm
from pytest_memleak.values.scan import scan


class GradientLooks:
    def __init__(self, look: Callable[[Iterable[Named]], Scan] = scan) -> None:
        self.found = Scan()
        self.overflows: list[str] = []
        """Gradients that are finite one by one, in words."""
        self._look = look
        self._training = Training(self)
        self._backwards = 0
        self._name_of: Callable[[torch.Tensor], str] = lambda parameter: ""
        self._undo = contextlib.ExitStack()

    def begin(self, name_of: Callable[[torch.Tensor], str]) -> None:
        self._name_of = name_of
        self._training.begin()

    def end(self) -> None:
        self._training.end()

    def body_ended(self) -> None:
        for optimizer in self._training.optimizers():
            self.optimizer_ends(optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        self._backwards += 1
        if not self._is_bad:
            name = f"the loss of backward {self._backwards}"
            self._add(self._look(of_anything(loss, kind=LOSS, name=name)))

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        if self._is_bad:
            return
        gradients = list(gradients_of(optimizer))
        found = self._look(gradients)
        if found.bad and _is_skipped(optimizer):
            return
        when = f" before step {number} of {type(optimizer).__name__}"
        if found.bad:  # once more, by the names that the models have for them: that takes a search
            found = self._look(list(gradients_of(optimizer, self._name_of, when)))
        elif largest := infinite_norm(gradients, found.largest):
            self.overflows.append(f"the norm of all gradients{when} is infinite: {largest}")
        self._add(found)

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._is_bad:
            self._add(self._look(of_optimizer(optimizer)))

    @property
    def _is_bad(self) -> bool:
        return bool(self.found.bad or self.overflows)

    def _add(self, found: Scan) -> None:
        found.largest.clear()
        self.found.add(found)


def _is_skipped(optimizer: Any) -> bool:
    """A gradient scaler has found the same, and lets a fused optimizer skip the step by itself."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, torch.Tensor) and bool(found)
