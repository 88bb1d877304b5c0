"""What the fix `fsdp_init` puts around accelerate's preparing for FSDP2.

Its broadcast takes every entry of a model's state for a sharded one, and crashes on a persistent buffer; on a CPU it
leaves holes of more than half a model between the parts that it makes. Its optimizers find their parameters by address,
and all that is on meta has the same.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch import nn

from pytest_memleak.upstream.patches import Patch, Unrecognised


def receiving() -> Iterator[Patch]:
    """Refused where prepare leaves on meta what it gets there (1.6), or goes another way (1.7)."""
    if SpecifierSet("<1.8", prereleases=True).contains(import_module("accelerate").__version__):
        raise Unrecognised("prepare of accelerate before 1.8 does not take models from meta as later ones do")
    from torch.distributed.tensor import distribute_tensor

    if "src_data_rank" not in inspect.signature(distribute_tensor).parameters:
        raise Unrecognised("torch before 2.7 cannot shard a tensor without sending it (distribute_tensor)")
    utils = import_module("accelerate.utils.fsdp_utils")
    accelerator = import_module("accelerate.accelerator").Accelerator
    parameters = ["accelerator", "model", "full_sd"]
    yield Patch(utils, "fsdp2_load_full_state_dict", _sent, parameters=parameters)
    yield Patch(accelerator, "_prepare_fsdp2", _told_apart, parameters=["self", "args"])


def _sent(found: Callable[..., Any]) -> Callable[..., Any]:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    signature = inspect.signature(found)

    def is_sent(value: Any, whole: Any) -> bool:
        if isinstance(whole, DTensor):  # it was one before FSDP: tensor parallelism has a part in it
            return False
        if isinstance(value, DTensor):
            return {type(placement) for placement in value.placements} <= {Shard, Replicate}
        return isinstance(value, torch.Tensor)

    @functools.wraps(found)
    def fsdp2_load_full_state_dict(
        accelerator: Any, model: nn.Module, full_sd: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        given = signature.bind(accelerator, model, full_sd, *args, **kwargs).arguments
        state = model.state_dict()
        # What is no tensor is each rank's own, and was never on meta.
        settled = {name: value for name, value in state.items() if not isinstance(value, torch.Tensor)}
        sent = {name: value for name, value in state.items() if is_sent(value, full_sd.get(name))}
        settled |= _of_rank_0(accelerator, full_sd, sent, offloads=bool(given.get("cpu_offload")))
        if len(settled) == len(state):
            model.load_state_dict(settled, assign=True)
        else:
            rest = {name: value for name, value in full_sd.items() if name not in settled}
            found(accelerator, _Rest(model, settled), rest, *args, **kwargs)
        return model

    return fsdp2_load_full_state_dict


def _of_rank_0(
    accelerator: Any, full_sd: Mapping[str, Any], wanted: Mapping[str, torch.Tensor], *, offloads: bool
) -> dict[str, torch.Tensor]:
    """What rank 0 has, as much of it as `wanted` has here. In its order, which is the same on all ranks.

    All arrive at one place, as large as the largest of them: a place for each, between the parts that stay, would leave
    holes that the C library does not give back.
    """
    sends, device = accelerator.is_main_process, accelerator.device
    if device.type == "cpu":
        device = torch.device("cpu")  # with a rank's number it would be another device, to which all is copied
    largest = max((value.numel() * value.element_size() for value in wanted.values()), default=0)
    place = torch.empty(0 if sends else largest, dtype=torch.uint8, device=device)
    received = {}
    for name, value in wanted.items():
        if sends:
            whole = full_sd[name].detach().to(device, value.dtype).contiguous()
        else:
            whole = place[: value.numel() * value.element_size()].view(value.dtype).view(value.shape)
        if whole.numel():
            torch.distributed.broadcast(whole, src=0)
        received[name] = _part(whole, value, offloads)
    return received


def _part(whole: torch.Tensor, like: torch.Tensor, offloads: bool) -> torch.Tensor:
    """Of a tensor that all ranks have what `like` has on this one, in memory of its own."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return whole.clone()
    mesh, placements = like.device_mesh, like.placements
    part: torch.Tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None).to_local()
    if part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr():
        part = part.clone()
    made: DTensor = DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())
    # Where parameters wait on the CPU for their turn, that is where FSDP looks for them.
    return made.to("cpu") if offloads else made


class _Rest:
    """A model whose state has none of what is settled when it is asked, and all when it is given."""

    def __init__(self, model: nn.Module, settled: Mapping[str, Any]) -> None:
        self._model = model
        self._settled = settled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in self._model.state_dict().items() if name not in self._settled}

    def load_state_dict(self, state: Mapping[str, Any], **kwargs: Any) -> Any:
        return self._model.load_state_dict({**state, **self._settled}, **kwargs)


def _told_apart(found: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(found)
    def _prepare_fsdp2(self: Any, *args: Any) -> Any:
        models = [one for one in args if isinstance(one, nn.Module)]
        nowhere: list[Any] = [parameter for model in models for parameter in model.parameters() if parameter.is_meta]
        for number, parameter in enumerate(nowhere, start=1):
            # No memory has a negative address. As an attribute of the tensor: that is how prepare itself tells the
            # addresses of tensors that it has freed.
            parameter.data_ptr = functools.partial(int, -number)
        try:
            return found(self, *args)
        finally:
            for parameter in nowhere:
                vars(parameter).pop("data_ptr", None)

    return _prepare_fsdp2
