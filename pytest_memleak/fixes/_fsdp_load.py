"""What the fix `fsdp_init` and its bugs put around transformers' loads, on ranks that get their weights from another.

Such a load ends with two steps: one gives places in memory to what is on meta still, the next fills what nobody has
filled. Fix and bugs are what the first gives places to, and what the second leaves alone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any
from weakref import WeakSet

import torch
from packaging.specifiers import SpecifierSet
from torch import nn

from pytest_memleak.upstream.patches import Patch, Unrecognised

Place = Callable[[Any], None]
Like = Callable[..., torch.Tensor]

_ASKED = ("is_fsdp_enabled", "is_local_dist_rank_0", "is_deepspeed_zero3_enabled", "PreTrainedModel")
_STEPS = ("_move_missing_keys_from_meta_to_device", "_move_missing_keys_from_meta_to_cpu")
"""The step that gives places: its name since 5.0, and before."""
_META = {"": "meta"}
_READING = {
    "LoadStateDictConfig": {"hf_quantizer", "device_map", "device_mesh", "weights_only"},
    "load_state_dict": {"map_location", "weights_only"},
}
"""What a load of transformers 5 is told, and a file's reader."""


def recognised() -> Any:
    """The module with the loader; refused where it does not tell which ranks wait for their weights."""
    modeling = import_module("transformers.modeling_utils")
    if missing := [name for name in _ASKED if not hasattr(modeling, name)]:
        raise Unrecognised(f"{modeling.__name__} of this release has no {', '.join(missing)}")
    return modeling


def waits(modeling: Any) -> bool:
    """Whether this process gets its weights from another, as transformers itself decides it."""
    fsdp = modeling.is_fsdp_enabled() and not modeling.is_local_dist_rank_0()
    return bool(fsdp) and not modeling.is_deepspeed_zero3_enabled()


def placing(modeling: Any, place: Place, *, spare: bool = True, unless_mapped: bool = False) -> Iterator[Patch]:
    """`place` instead of upstream's step. `spare`: what will be received is not initialized before that.
    `unless_mapped`: not of models that the caller wants on devices of its choice, which nobody sends.
    """
    base = modeling.PreTrainedModel
    step = next((name for name in _STEPS if hasattr(base, name)), None)
    if step is None:
        raise Unrecognised(f"PreTrainedModel of this release has neither {' nor '.join(_STEPS)}")
    marks_by_itself = step == _STEPS[1]
    placed: WeakSet[Any] = WeakSet()

    def places(found: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(found)

        @functools.wraps(found)
        def move(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            sharded = given.get("device_mesh") is not None  # by tensor parallelism, which reads its own part
            mapped = unless_mapped and given.get("device_map") not in (None, _META)
            if given["hf_quantizer"] is not None or sharded or mapped or not waits(modeling):
                return found(*args, **kwargs)
            place(given["self"])
            placed.add(given["self"])
            return None

        return move

    def initializes(found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def _initialize_missing_keys(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self not in placed:
                return found(self, *args, **kwargs)
            placed.discard(self)
            if spare and marks_by_itself:
                return found(self, *args, **kwargs)
            if spare:
                mark_as_initialized(self)
            # All modules are asked, since each may have buffers that nobody else computes. Upstream leaves out the
            # outermost one.
            return self.initialize_weights()

        return _initialize_missing_keys

    yield Patch(base, step, places, parameters=["self", "missing_keys", "hf_quantizer"])
    yield Patch(base, "_initialize_missing_keys", initializes, parameters=["self", "is_quantized"])


def reading_nothing(modeling: Any) -> Iterator[Patch]:
    """Loads of transformers 5 read shapes and types from a checkpoint, and no values; 4 skipped the file by itself."""
    if not hasattr(modeling, "LoadStateDictConfig"):
        return
    for function, needed in _READING.items():
        if missing := needed.difference(inspect.signature(getattr(modeling, function)).parameters):
            raise Unrecognised(f"{function} of this release has no {', '.join(sorted(missing))}")

    def loads(found: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(found)

        @functools.wraps(found)
        def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            config = bound.arguments["load_config"]
            plain = config.hf_quantizer is None and config.device_mesh is None and config.device_map is None
            if plain and waits(modeling):
                files, given = bound.arguments["checkpoint_files"], bound.arguments["state_dict"]
                if given is not None or files is not None:
                    bound.arguments["state_dict"] = _shapes(modeling, given, files or [], config)
                bound.arguments["load_config"] = dataclasses.replace(config, device_map=_META)
            return found(*bound.args, **bound.kwargs)

        return _load_pretrained_model

    base = modeling.PreTrainedModel
    names = ["model", "state_dict", "checkpoint_files", "load_config"]
    yield Patch(base, "_load_pretrained_model", loads, parameters=names)
    if SpecifierSet(">=5.4", prereleases=True).contains(import_module("transformers").__version__):
        yield Patch(base, "tie_weights", functools.partial(_ties, modeling), parameters=["missing_keys"])


def _shapes(modeling: Any, given: Any, files: list[Any], config: Any) -> dict[str, Any]:
    if given is not None:
        return {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    found: dict[str, Any] = {}
    for file in files:
        found |= modeling.load_state_dict(file, map_location="meta", weights_only=config.weights_only)
    return found


def _ties(modeling: Any, found: Callable[..., Any]) -> Callable[..., Any]:
    """Since 5.4 two weights that are both in the checkpoint are tied if they are equal, which meta cannot tell. They
    are presumed to be what the config says: accelerate's prepare ties them for that reason alone, on every rank.
    """
    signature = inspect.signature(found)

    @functools.wraps(found)
    def tie_weights(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        self, missing = given["self"], given.get("missing_keys")
        if missing is not None and waits(modeling):
            for target, source in getattr(self, "all_tied_weights_keys", {}).items():
                if not {target, source} & missing and _both_on_meta(self, target, source):
                    missing.add(target)  # taken out again when it is tied
        return found(*args, **kwargs)

    return tie_weights


def _both_on_meta(model: nn.Module, *names: str) -> bool:
    return all(model.get_parameter(name).is_meta for name in names)


def on_meta(model: nn.Module) -> None:
    """The fix: memory for what no rank sends, the buffers that are computed anew wherever a model is made."""
    for name, parameter in list(model.named_parameters()):
        if not parameter.is_meta:  # made of something that does not heed the default device
            _put(model, name, torch.empty_like(parameter, device="meta"))
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")


def filled(like: Like, model: Any) -> None:
    """The bugs: memory for everything. transformers 4 has its buffers by then, and leaves them."""
    for name, parameter in list(model.named_parameters()):
        _put(model, name, like(parameter, device="cpu"))
    if hasattr(model, _STEPS[0]):
        for name, buffer in list(model.named_buffers()):
            _put(model, name, like(buffer, device="cpu"))


def mark_as_initialized(model: nn.Module) -> None:
    for value in model.state_dict(keep_vars=True).values():
        if isinstance(value, torch.Tensor):
            marked: Any = value
            marked._is_hf_initialized = True


def _put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        old = owner._parameters[leaf]
        value = nn.Parameter(value.detach(), requires_grad=old is not None and old.requires_grad)
    setattr(owner, leaf, value)
