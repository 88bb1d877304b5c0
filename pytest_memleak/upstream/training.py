"""What a training step shows of itself: what `backward` is called on, and the gradients that an optimizer goes by."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pytest_memleak.upstream.patches import Patch


class Listener(Protocol):
    def backward(self, loss: torch.Tensor) -> None:
        """It is about to be called on this one."""

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """Its step of that number, the first is 1, is about to be taken."""

    def optimizer_ends(self, optimizer: torch.optim.Optimizer) -> None:
        """Nobody holds one any more that has taken steps."""


class Training:
    """While entered, a listener is told. A tensor's own `backward` calls torch.autograd's by its name."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._steps: dict[int, tuple[weakref.ref[torch.optim.Optimizer], int]] = {}
        self._undo = contextlib.ExitStack()

    def begin(self) -> None:
        with contextlib.ExitStack() as undo:
            undo.enter_context(Patch(torch.autograd, "backward", self._backward, parameters=["tensors"]))
            undo.enter_context(Patch(torch.optim.Optimizer, "__del__", self._end, own=True))
            undo.callback(register_optimizer_step_pre_hook(self._step).remove)
            self._undo = undo.pop_all()

    def end(self) -> None:
        self._undo.close()
        self._steps.clear()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that have taken steps and are still there."""
        return [optimizer for ref, _ in list(self._steps.values()) if (optimizer := ref()) is not None]

    def _step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        ref, steps = self._steps.get(id(optimizer), (None, 0))
        if ref is None or ref() is not optimizer:
            ref, steps = weakref.ref(optimizer), 0
        self._steps[id(optimizer)] = ref, steps + 1
        self._listener.step(optimizer, steps + 1)

    def _backward(self, found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            for loss in (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors):
                if isinstance(loss, torch.Tensor):
                    self._listener.backward(loss)
            return found(tensors, *args, **kwargs)

        return backward

    def _end(self, found: Callable[..., None] | None) -> Callable[..., None]:
        def __del__(optimizer: torch.optim.Optimizer) -> None:
            ref, _ = self._steps.pop(id(optimizer), (None, 0))
            # Where a whole cycle is collected, weak references are cleared before the objects end.
            if ref is not None and ref() in (optimizer, None):
                self._listener.optimizer_ends(optimizer)
            if found is not None:
                found(optimizer)

        return __del__
