"""A model that is run to see what that takes, and is afterwards as if nobody had."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import torch
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.levels import simulated
from pytest_memleak.planner.running.states import refuse_emptied


@contextlib.contextmanager
def as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Steps inside leave no gradient and nothing in buffers (means of a batch norm), and draw no random numbers."""
    if any(one.grad is not None for one in model.parameters()):
        raise BadInput("a step is profiled from its start: call zero_grad() before, there are gradients of another one")
    refuse_emptied(model)
    training = [(module, module.training) for module in model.modules()]
    restore_buffers = _restoring_buffers(model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            restore_buffers()
            for module, was in training:
                module.training = was


def _restoring_buffers(model: nn.Module) -> Callable[[], None]:
    """Their values are kept as a file is, and in no tensor: memory is measured meanwhile."""
    held = [
        (module._buffers, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    if simulated():  # there are no values
        return lambda: None
    kept = io.BytesIO()
    torch.save([buffer.detach() for _, _, buffer in held], kept)

    def restore() -> None:
        kept.seek(0)
        values = torch.load(kept, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for (buffers, name, buffer), value in zip(held, values, strict=True):
                buffers[name] = buffer.copy_(value)

    return restore
