"""What the fix `fsdp_init` puts around accelerate's preparing for FSDP2.

Its broadcast takes every entry of a model's state for a sharded one, and crashes on a persistent buffer. Its optimizers
find their parameters by address, and all that is on meta has the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch import nn

from pytest_memleak.upstream.patches import Patch, Unrecognised


def receiving() -> Iterator[Patch]:
    """Refused where prepare does not take models from meta."""
    if SpecifierSet("<1.7", prereleases=True).contains(import_module("accelerate").__version__):
        raise Unrecognised("prepare of accelerate before 1.7 leaves on meta what it gets there")
    utils = import_module("accelerate.utils.fsdp_utils")
    accelerator = import_module("accelerate.accelerator").Accelerator
    parameters = ["accelerator", "model", "full_sd"]
    yield Patch(utils, "fsdp2_load_full_state_dict", _with_plain_entries, parameters=parameters)
    yield Patch(accelerator, "_prepare_fsdp2", _told_apart, parameters=["self", "args"])


def _with_plain_entries(found: Callable[..., Any]) -> Callable[..., Any]:
    from torch.distributed.tensor import DTensor

    @functools.wraps(found)
    def fsdp2_load_full_state_dict(
        accelerator: Any, model: nn.Module, full_sd: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        state = model.state_dict()
        apart = {name: value for name, value in state.items() if not isinstance(value, DTensor)}
        if not apart:
            return found(accelerator, model, full_sd, *args, **kwargs)
        # In the order of the state, which is the same on all ranks.
        received = {
            name: _of_rank_0(accelerator, full_sd, name, value)
            for name, value in apart.items()
            if isinstance(value, torch.Tensor)
        }
        # What is no tensor is each rank's own, and stays: it was never on meta.
        sharded = _Sharded(model, apart, received)
        found(
            accelerator, sharded, {name: value for name, value in full_sd.items() if name not in apart}, *args, **kwargs
        )
        return model

    return fsdp2_load_full_state_dict


def _of_rank_0(accelerator: Any, full_sd: Mapping[str, Any], name: str, like: torch.Tensor) -> torch.Tensor:
    if accelerator.is_main_process:
        value = full_sd[name].detach().to(accelerator.device, like.dtype).contiguous()
    else:
        value = torch.empty(like.shape, dtype=like.dtype, device=accelerator.device)
    torch.distributed.broadcast(value, src=0)
    return value


class _Sharded:
    """A model whose state has none of some entries when it is asked, and all when it is given."""

    def __init__(self, model: nn.Module, apart: Mapping[str, Any], received: Mapping[str, torch.Tensor]) -> None:
        self._model = model
        self._apart = apart
        self._received = received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._model.state_dict().items() if name not in self._apart}

    def load_state_dict(self, state: Mapping[str, Any], **kwargs: Any) -> Any:
        own = {name: value for name, value in self._apart.items() if name not in self._received}
        return self._model.load_state_dict({**state, **self._received, **own}, **kwargs)


def _told_apart(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def _prepare_fsdp2(self: Any, *args: Any) -> Any:
        models = [one for one in args if isinstance(one, nn.Module)]
        nowhere = [parameter for model in models for parameter in model.parameters() if parameter.is_meta]
        for number, parameter in enumerate(nowhere, start=1):
            # No memory has a negative address. As an attribute of the tensor: that is how prepare itself tells the
            # addresses of tensors that it has freed.
            parameter.data_ptr = functools.partial(int, -number)  # type: ignore[method-assign]
        try:
            return found(self, *args)
        finally:
            for parameter in nowhere:
                vars(parameter).pop("data_ptr", None)

    return _prepare_fsdp2
