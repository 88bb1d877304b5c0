"""A block in one of the modes: the same computation, and another fate of what it saves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.running.saved import SavedOnHost
from pytest_memleak.planner.running.transfers import Transfers

Forward = Callable[..., Any]
Begins = Callable[[SavedOnHost], None]


@contextlib.contextmanager
def replaced(block: nn.Module, forward: Forward) -> Iterator[None]:
    """Another forward of this one module; one that somebody else has put there before comes back."""
    before = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        if before is None:
            del block.forward
        else:
            block.forward = before


def in_mode(
    block: nn.Module, mode: Mode, transfers: Transfers, weights: frozenset[int], begins: Begins = lambda saved: None
) -> contextlib.AbstractContextManager[None]:
    """`weights`: storages that stay where they are. `begins` gets what each forward pass of the block saves."""
    if mode is Mode.NONE:
        return contextlib.nullcontext()
    if mode is Mode.CHECKPOINT:
        return replaced(block, _checkpointed(block.forward))
    return replaced(block, _on_host(block.forward, transfers, weights, mode is Mode.SWAP, begins))


def storages(model: nn.Module) -> frozenset[int]:
    """Of all weights and buffers, as the hooks know them."""
    return frozenset(id_of(tensor) for tensors in (model.parameters(), model.buffers()) for tensor in tensors)


def id_of(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _checkpointed(forward: Forward) -> Forward:
    @functools.wraps(forward)
    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **_without_cache(kwargs))

    return checkpointed


def _on_host(forward: Forward, transfers: Transfers, weights: frozenset[int], ahead: bool, begins: Begins) -> Forward:
    @functools.wraps(forward)
    def on_host(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Masks and positions are all blocks' and would stay on the card anyway.
        others = {id_of(tensor) for tensor in others_of(args, kwargs)}
        saved = SavedOnHost(transfers, lambda tensor: id_of(tensor) in weights or id_of(tensor) in others, ahead)
        begins(saved)
        with saved.hooks():
            out = forward(*args, **_without_cache(kwargs))
        saved.leave()
        return out

    return on_host


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """What a block works on: its first argument."""
    first = args[0] if args else kwargs.get("hidden_states")
    return first if isinstance(first, torch.Tensor) else None


def others_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """All that a block is given besides: masks, positions."""
    named = kwargs if args else {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return tensors_in((args[1:], named))


def output_of(out: Any) -> torch.Tensor | None:
    first = out[0] if isinstance(out, tuple) and out else out
    return first if isinstance(first, torch.Tensor) else None


def when_backward(tensor: torch.Tensor, do: Callable[[], None]) -> None:
    """As soon as the gradient of this tensor is whole: all that came after it has gone backward then."""
    tensor.register_hook(lambda gradient: do())


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)


def _without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    """A cache of keys and values is for generating; computed again, a block would add to it twice."""
    return {name: None if name in ("past_key_values", "past_key_value") else value for name, value in kwargs.items()}
