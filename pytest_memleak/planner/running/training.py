"""A model trained under a plan: forward, backward and the optimizer's step, as the program does them without one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn

from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.residency import Residency
from pytest_memleak.planner.running.modes import in_mode, input_of, output_of, storages, when_backward
from pytest_memleak.planner.running.saved import SavedOnHost
from pytest_memleak.planner.running.states import States
from pytest_memleak.planner.running.transfers import Transfers

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Training:
    """While entered, the model runs by the plan; afterwards it is whole, and on the card.

    `make_optimizer` gets weights and returns an optimizer for them: one is made for those on the card, and one for
    those on the host. `step` is the step of both, and empties gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        layout: Layout,
        plan: Plan,
        make_optimizer: MakeOptimizer | None = None,
        device: torch.device | None = None,
    ) -> None:
        self._model = model
        self._blocks = blocks
        self._layout = layout
        self._plan = plan
        self._make_optimizer = make_optimizer
        self._device = device or next(model.parameters()).device
        self._modes = plan.modes(layout.blocks)
        self._undo = contextlib.ExitStack()
        self._swapped: dict[int, SavedOnHost] = {}
        self._leaving: list[int] = []
        self.optimizers: list[torch.optim.Optimizer] = []

    def __enter__(self) -> Training:
        with contextlib.ExitStack() as undo:
            self._transfers = Transfers(self._device)
            self._residency = Residency(self._layout, self._plan)
            self._states = States(self._model, self._layout, self._plan.n_persist, self._transfers)
            undo.callback(self._states.restore)
            self._to_card()
            weights = storages(self._model)
            for number, block in enumerate(self._blocks):
                begins = self._remember(number)
                undo.enter_context(in_mode(block, self._modes[number], self._transfers, weights, begins))
                undo.callback(block.register_forward_pre_hook(self._before(number), with_kwargs=True).remove)
                undo.callback(block.register_forward_hook(self._behind(number)).remove)
            self._make_optimizers()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.optimizers.clear()
        self._swapped.clear()  # of a step that was given up: what it holds on the card, weights may need
        self._leaving.clear()
        self._undo.close()

    def step(self) -> None:
        self.finish()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()

    def finish(self) -> None:
        """Until all gradients are where their optimizers are."""
        self._end()
        self._transfers.finish()

    def give_up(self) -> None:
        """Instead of a step: gradients go, and weights stay as they are."""
        for weight in (*self._model.parameters(), *self._states.trained_on_host()):
            weight.grad = None

    def _to_card(self) -> None:
        """What is not streamed; a weight that is tied stays so."""
        streamed = {name for chunk in self._layout.streamed(self._plan.n_persist) for name in chunk.names}
        for name, tensor in (*self._model.named_parameters(), *self._model.named_buffers()):
            if name not in streamed and tensor.device != self._device:
                tensor.data = tensor.data.to(self._device)

    def _make_optimizers(self) -> None:
        if self._make_optimizer is None:
            return
        streamed = {name for chunk in self._layout.streamed(self._plan.n_persist) for name in chunk.names}
        here = [one for name, one in self._model.named_parameters() if one.requires_grad and name not in streamed]
        for weights in (here, self._states.trained_on_host()):
            if weights:
                self.optimizers.append(self._make_optimizer(weights))

    def _before(self, number: int) -> Callable[..., None]:
        def before(block: nn.Module, args: Any, kwargs: Any) -> None:
            if number == 0:
                self._end()  # of a pass that nobody went back through
                if (tensor := input_of(args, kwargs)) is not None and tensor.requires_grad:
                    when_backward(tensor, self._end)
            self._settle(before=number - 1)
            moves = self._residency.forward(number)
            self._states.move(moves)
            self._states.wait_for(self._layout.of_blocks[number])

        return before

    def _behind(self, number: int) -> Callable[..., None]:
        def behind(block: nn.Module, args: Any, out: Any) -> None:
            if number == len(self._blocks) - 1:
                self._settle(before=number + 1)
            if (tensor := output_of(out)) is not None and tensor.requires_grad:
                when_backward(tensor, functools.partial(self._backward, number))

        return behind

    def _backward(self, number: int) -> None:
        if number == len(self._blocks) - 1:
            self._bring_back(number)
        self._states.move(self._residency.backward(number))
        self._states.wait_for(self._layout.of_blocks[number])
        self._bring_back(number - 1)

    def _remember(self, number: int) -> Callable[[SavedOnHost], None]:
        def remember(saved: SavedOnHost) -> None:
            if self._modes[number] is Mode.SWAP:
                self._swapped[number] = saved
                self._leaving.append(number)

        return remember

    def _settle(self, before: int) -> None:
        while self._leaving and self._leaving[0] < before:
            self._swapped[self._leaving.pop(0)].settle()

    def _bring_back(self, number: int) -> None:
        if number in self._swapped:
            self._swapped.pop(number).bring_back()

    def _end(self) -> None:
        """Of a way forth and back."""
        self._states.move(self._residency.end())
        self._swapped.clear()
        self._leaving.clear()
