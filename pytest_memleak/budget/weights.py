"""What a module's weights were before quantization, and what it holds now. Shapes only: no tensor is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from pytest_memleak.budget.packed import eight_bit_bytes, four_bit_bytes, parametrized_state
from pytest_memleak.errors import Inconclusive

# bitsandbytes is recognised by these names, so that looking at a model never imports it. Checked on 0.46 to 0.50.
_BNB_PARAMETERS = {"Params4bit", "Int8Params"}


@dataclass(frozen=True)
class Weight:
    """One floating-point parameter as it was before quantization."""

    name: str
    numel: int
    itemsize: int
    dtype: str
    rows: int = 0
    """Output features of a Linear weight that bitsandbytes would quantize or has quantized; 0 for all others."""
    fp32: bool = False
    """transformers keeps its module in fp32, whatever the model is loaded in, and never quantizes it."""


def weights_of(model: nn.Module) -> list[Weight]:
    """The floating-point parameters, tied ones once. Inconclusive if the model does not say what it was."""
    _refuse_other_quantizers(model)
    tied, kept = _tied_names(model), _kept_modules(model)
    pinned = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    seen: set[object] = set()
    weights: list[Weight] = []
    quantized: list[bool] = []
    for path, module in nn.Module.named_modules(model):
        for name, parameter in module._parameters.items():
            full = f"{path}.{name}" if path else name
            if parameter is None or full in tied or (memory := _identity(parameter)) in seen:
                continue
            seen.add(memory)
            fp32 = bool(pinned) and not pinned.isdisjoint(full.split("."))
            rows = _rows(module, parameter) if name == "weight" and not fp32 and id(module) not in kept else 0
            weights.append(_weight(full, module, parameter, rows, fp32))
            quantized.append(bool(_bnb_kind(parameter)) and not parameter.dtype.is_floating_point)
    if any(quantized):
        # Which weights bitsandbytes takes is then no question any more.
        weights = [w if taken else replace(w, rows=0) for w, taken in zip(weights, quantized, strict=True)]
    return weights


def held_bytes(model: nn.Module) -> int:
    """Weights, buffers and quantization state as shapes; what shares memory counts once."""
    views: dict[int, set[tuple[object, ...]]] = {}
    sizes: dict[int, int] = {}
    spans: dict[int, int] = {}
    for tensor in _held(model):
        storage = tensor.untyped_storage()
        key = storage._cdata
        view = (tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if view not in views.setdefault(key, set()):
            views[key].add(view)
            spans[key] = spans.get(key, 0) + tensor.numel() * tensor.element_size()
            sizes[key] = storage.nbytes()
    # A weight read from a mapped file is a small view of a large storage, an expanded one a large view of a small one.
    return sum(min(span, sizes[key]) for key, span in spans.items())


def expected_bytes(model: nn.Module) -> int:
    """What it is going to hold: `held_bytes`, while some of its weights have shapes only and are still to be loaded."""
    tied = _tied_names(model)
    there: dict[int, int] = {}
    coming = 0
    for path, module in nn.Module.named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or is_lazy(tensor):
                continue
            if tensor.device.type != "meta":
                there |= {part.untyped_storage()._cdata: part.numel() * part.element_size() for part in _plain(tensor)}
            elif (f"{path}.{name}" if path else name) not in tied:
                coming += _once_loaded(tensor)
    return sum(there.values()) + coming


def all_on_meta(model: nn.Module) -> bool:
    """A model that only plans: none of its parameters has memory."""
    return all(parameter.device.type == "meta" for parameter in _parameters(model))


def has_weights(model: nn.Module) -> bool:
    return next(_parameters(model), None) is not None


def _parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in nn.Module.modules(model):
        # A module whose __init__ failed early has no such dictionary.
        yield from (p for p in vars(module).get("_parameters", {}).values() if p is not None)


def _weight(full: str, module: nn.Module, parameter: nn.Parameter, rows: int, fp32: bool) -> Weight:
    if is_lazy(parameter):
        raise Inconclusive(f"{full!r} of {type(module).__name__} is lazy and had no shape yet")
    kind = _bnb_kind(parameter)
    numel, dtype = parameter.numel(), parameter.dtype
    if (state := parametrized_state(module)) is not None:
        numel, dtype = int(torch.Size(state.shape).numel()), state.dtype
    if kind == "Params4bit":
        state = getattr(parameter, "quant_state", None)
        if state is not None and state.shape is not None:
            numel = int(torch.Size(state.shape).numel())
        elif isinstance(module, nn.Linear):
            numel = module.in_features * module.out_features
        dtype = state.dtype if state is not None else dtype
    if kind and not dtype.is_floating_point:
        dtype = torch.float16  # what bitsandbytes casts to before it rounds to 8 bits
    if not dtype.is_floating_point:
        raise Inconclusive(f"{full!r} is a parameter of {dtype}: what it was before quantization cannot be told")
    return Weight(full, numel, dtype.itemsize, str(dtype).removeprefix("torch."), rows, fp32)


def _rows(module: nn.Module, parameter: nn.Parameter) -> int:
    """Output features, where bitsandbytes' quantization of transformers models would replace this module."""
    if type(module) is nn.Linear or _bnb_kind(parameter):
        return int(getattr(module, "out_features", 0))
    # GPT-2's transposed Linear.
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return int(parameter.shape[-1])
    return 0


def _bnb_kind(parameter: object) -> str:
    kind = type(parameter)
    return kind.__name__ if kind.__name__ in _BNB_PARAMETERS and kind.__module__.startswith("bitsandbytes") else ""


def _identity(tensor: torch.Tensor) -> object:
    """The same for tensors that are one and the same memory, also as two Parameter objects."""
    if is_lazy(tensor) or is_traceable_wrapper_subclass(tensor):
        return id(tensor)
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape))


def _refuse_other_quantizers(model: nn.Module) -> None:
    for module in nn.Module.modules(model):
        quantization = getattr(vars(module).get("config"), "quantization_config", None)
        # Only a model that was really loaded so has a quantizer: the config of a plain twin may name a method as well.
        if quantization is None or vars(module).get("hf_quantizer") is None:
            continue
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        method = str(getattr(method, "value", method))
        if method != "bitsandbytes":
            raise Inconclusive(
                f"{type(module).__name__} is quantized by {method}: what it was is only seen as it loads"
            )


def _tied_names(model: nn.Module) -> set[str]:
    """Names that transformers 5 is going to tie at the end of a load: until then they are apart, on meta."""
    listed = getattr(model, "all_tied_weights_keys", None)
    if not isinstance(listed, dict):
        return set()
    present = dict(nn.Module.named_parameters(model, remove_duplicate=False))
    return {
        target
        for target, source in listed.items()
        if target in present and source in present and present[target].device.type == "meta"
    }


def _kept_modules(model: nn.Module) -> set[int]:
    """Ids of modules that stay as they are when everything else is quantized: the heads."""
    kept = {id(m) for path, m in nn.Module.named_modules(model) if path.rpartition(".")[2] == "lm_head"}
    output = _embedding(model, "get_output_embeddings")
    if output is not None:
        kept.add(id(output))
    if callable(getattr(model, "get_output_embeddings", None)):
        # transformers also leaves the module alone whose weight is the last parameter: a classifier without a bias.
        last = next(reversed([name for name, _ in nn.Module.named_parameters(model)]), "")
        if last.endswith(".weight"):
            kept.add(id(model.get_submodule(last.removesuffix(".weight"))))
    return kept


def _embedding(model: nn.Module, getter: str) -> nn.Module | None:
    get = getattr(model, getter, None)
    if not callable(get):
        return None
    try:
        found = get()
    except (NotImplementedError, AttributeError):
        return None  # how transformers says that a model has no such embedding
    return found if isinstance(found, nn.Module) else None


def _held(model: nn.Module) -> Iterator[torch.Tensor]:
    for module in nn.Module.modules(model):
        members = vars(module)
        for tensor in (*members["_parameters"].values(), *members["_buffers"].values()):
            if tensor is None or is_lazy(tensor):
                continue
            yield from _plain(tensor)
            if _bnb_kind(tensor):
                yield from _tensors_in(vars(tensor))
                # After the first call, the 8-bit scales have moved from the parameter to the module.
                yield from _tensors_in(vars(members["state"]) if "state" in members else {})
        yield from _tensors_in({"": parametrized_state(module)})


def _tensors_in(members: dict[str, Any]) -> Iterator[torch.Tensor]:
    for value in members.values():
        if isinstance(value, torch.Tensor):
            yield from _plain(value)
        elif type(value).__name__ == "QuantState":
            yield from _tensors_in(vars(value))


def _once_loaded(tensor: torch.Tensor) -> int:
    """Of a tensor on the meta device: what it takes when a load has filled it."""
    kind, numel = _bnb_kind(tensor), tensor.numel()
    if not kind or not tensor.dtype.is_floating_point:
        return numel * tensor.element_size()
    return four_bit_bytes(numel) if kind == "Params4bit" else eight_bit_bytes(numel, int(tensor.shape[0]))


def _plain(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors with memory inside a wrapper such as DTensor."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        # In torch 2.13 a DTensor names its mesh beside its shard.
        if isinstance(part := getattr(tensor, name), torch.Tensor):
            yield from _plain(part)
