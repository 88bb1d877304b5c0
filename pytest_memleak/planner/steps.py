"""One step of a model whose blocks run in given modes or hand on what they get, with marks on its way."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from pytest_memleak.errors import BadInput
from pytest_memleak.planner import marks as mark
from pytest_memleak.planner.levels import Levels
from pytest_memleak.planner.marks import Clock, Marks
from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.running.modes import (
    id_of,
    in_mode,
    input_of,
    others_of,
    output_of,
    replaced,
    storages,
    tensors_in,
    when_backward,
)
from pytest_memleak.planner.running.transfers import Transfers
from pytest_memleak.planner.sharing import Given


class Step:
    def __init__(
        self,
        modes: Mapping[int, Mode],
        levels: Levels,
        device: torch.device,
        like: Step | None = None,
        clock: Clock = time.perf_counter,
        *,
        tells_gradients: bool = True,
    ) -> None:
        self.modes = modes
        self.given = Given()
        self.marks = Marks(levels, device, self.given.passed, clock)
        self.shared: Mapping[int, int] = {}
        self.held: Mapping[int, Mapping[int, int]] = {}
        """Of what blocks share: what there is, and what is still there when the model's own code has ended."""
        self.reached: frozenset[str] = frozenset()
        """The weights that have got a gradient."""
        self.as_tuple: int = like.as_tuple if like else 0
        """How many things a block returns; 0 for a tensor alone."""
        self.dtype: torch.dtype | None = like.dtype if like else None
        self.a_module_follows: bool = like.a_module_follows if like else True
        """The last block: a norm, a head. Heads that are functions call none."""
        self._next_module, self._next_function = _NextModule(), _NextFunction()
        self._device = device
        self._tells_gradients = tells_gradients
        self._blocks = 0

    def run(self, model: nn.Module, blocks: Sequence[nn.Module], batch: Mapping[str, Any]) -> Step:
        self._blocks = len(blocks)
        transfers, weights = Transfers(self._device), storages(model)
        self.given.nobodys = weights | {id_of(tensor) for tensor in tensors_in(dict(batch))}
        with contextlib.ExitStack() as undo:
            for number, block in enumerate(blocks):
                if number in self.modes:
                    undo.enter_context(in_mode(block, self.modes[number], transfers, weights))
                    for weight in block.parameters():
                        if weight.requires_grad and self._tells_gradients:
                            undo.callback(_tell_gradient(weight, self.marks, number))
                else:
                    undo.enter_context(replaced(block, self._hand_on))
                undo.callback(block.register_forward_pre_hook(self._before(number), with_kwargs=True).remove)
                undo.callback(block.register_forward_hook(self._behind(number)).remove)
            undo.callback(self._next_module.forget)
            self.marks.make(mark.START)
            loss = self._loss(model, batch)
            loss.backward()
            del loss
            self.given.look(0)
            self.marks.make(mark.END)
            self.marks.share(self.given.shared_at)
        self.reached = frozenset(name for name, one in model.named_parameters() if one.grad is not None)
        model.zero_grad(set_to_none=True)
        return self

    def _loss(self, model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
        with contextlib.nullcontext() if self.a_module_follows else self._next_function:
            out = model(**batch)
        self.a_module_follows &= not self._next_module.forget()
        loss = getattr(out, "loss", None)
        if not isinstance(loss, torch.Tensor):
            given = ", ".join(batch)
            raise BadInput(
                f"{type(model).__name__} gives a {type(out).__name__} without a loss for a batch of {given}: give it "
                "labels, and have it return an object with a loss"
            )
        if not loss.requires_grad:
            raise BadInput(
                f"no weight of {type(model).__name__} that is trained has a part in the loss of a batch of "
                f"{', '.join(batch)}: there is no step to profile. Are all weights frozen?"
            )
        return loss

    def _hand_on(self, *args: Any, **kwargs: Any) -> Any:
        """A copy: as after a block, what it was given is gone. And of the type that blocks return: adapters' embeddings
        may be more exact."""
        tensor = input_of(args, kwargs)
        assert tensor is not None
        copy = tensor.to(self.dtype or tensor.dtype, copy=True)
        return (copy, *[None] * (self.as_tuple - 1)) if self.as_tuple else copy

    def _before(self, number: int) -> Callable[..., None]:
        def before(block: nn.Module, args: Any, kwargs: Any) -> None:
            if number > 1:
                self.given.look(number - 1)
            if (tensor := input_of(args, kwargs)) is not None:
                self.given.take(number, tensor, others_of(args, kwargs))
                if number == 0 and tensor.requires_grad:
                    when_backward(tensor, lambda: self.marks.make(mark.INPUT))
            self.marks.make(mark.FORWARD, number)

        return before

    def _behind(self, number: int) -> Callable[..., None]:
        def behind(block: nn.Module, args: Any, out: Any) -> None:
            self.as_tuple = len(out) if isinstance(out, tuple) else 0
            if (tensor := output_of(out)) is not None:
                self.dtype = tensor.dtype
            if (tensor := output_of(out)) is not None and tensor.requires_grad:
                when_backward(tensor, lambda: self._backward(number))
            if number == self._blocks - 1:
                # Until then the caller still holds what the last block was given.
                following = self._next_module if self.a_module_follows else self._next_function
                following.do(self._behind_all)

        return behind

    def _behind_all(self) -> None:
        if self._blocks > 1:
            self.given.look(self._blocks - 1)
        self.shared = self.given.shared()
        self.marks.make(mark.BEHIND)

    def _backward(self, number: int) -> None:
        self._code_has_ended()
        self.marks.make(mark.BACKWARD, number)

    def _code_has_ended(self) -> None:
        if 0 not in self.given.kept:
            self.given.look(0)
            self.held = {block: self.given.held(block) for block in self.modes}


class _NextModule:
    """Something to do when it is called."""

    def __init__(self) -> None:
        self._hook: RemovableHandle | None = None

    def do(self, what: Callable[[], None]) -> None:
        def once(module: nn.Module, args: Any) -> None:
            self.forget()
            what()

        self.forget()
        self._hook = register_module_forward_pre_hook(once)

    def forget(self) -> bool:
        """Whether it had not been done."""
        hook, self._hook = self._hook, None
        if hook is not None:
            hook.remove()
        return hook is not None


class _NextFunction(TorchFunctionMode):
    """The same of a function of torch's, while entered."""

    def __init__(self) -> None:
        super().__init__()
        self._what: Callable[[], None] | None = None

    def do(self, what: Callable[[], None]) -> None:
        self._what = what

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        what, self._what = self._what, None
        if what is not None:
            what()
        return func(*args, **(kwargs or {}))


def _tell_gradient(weight: nn.Parameter, marks: Marks, block: int) -> Callable[[], None]:
    def tell(whole: torch.Tensor) -> None:
        assert whole.grad is not None
        marks.make(mark.GRADIENT, block, whole.grad.untyped_storage().nbytes())

    handle = weight.register_post_accumulate_grad_hook(tell)
    remove: Callable[[], None] = handle.remove
    return remove
