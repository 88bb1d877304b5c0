"""The tensors of models, optimizers and whatever else is looked at, each with its name and what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_memleak.budget.packed import parametrized_state

PARAMETER = "parameter"
BUFFER, FLEETING = "persistent buffer", "non-persistent buffer"
BUFFERS = (BUFFER, FLEETING)
ORDINARY = (nn.Parameter, torch.Tensor)
"""What is no subclass with a meaning of its own."""
QUANTIZATION = "quantization state"
GRADIENT = "gradient"
STATE = "optimizer state"
LOSS = "loss"
TENSOR = "tensor"


class Named(NamedTuple):
    # Made for every tensor of a model: a look at a small one takes only ten times as long.
    name: str
    kind: str
    tensor: torch.Tensor
    """As it was found: a wrapper such as a DTensor is not opened."""
    owner: nn.Module | None = None
    """The module that has it."""


def of_module(model: nn.Module, *, gradients: bool = False) -> Iterator[Named]:
    """Parameters, buffers and what bitsandbytes keeps beside its weights; on request the gradients that are there."""
    for found in members(model):
        yield found
        if type(found.tensor) not in ORDINARY:
            yield from _quantization(found)
        if gradients and found.kind == PARAMETER and found.tensor.is_leaf and found.tensor.grad is not None:
            yield Named(f"{found.name}.grad", GRADIENT, found.tensor.grad, found.owner)


def members(model: nn.Module) -> Iterator[Named]:
    """Parameters and buffers under each of their names."""
    for path, module in nn.Module.named_modules(model):
        has = vars(module)  # a module whose __init__ failed early has no such dictionaries
        fleeting = has.get("_non_persistent_buffers_set", ())
        for name, parameter in has.get("_parameters", {}).items():
            if parameter is not None:
                yield Named(_joined(path, name), PARAMETER, parameter, module)
        for name, buffer in has.get("_buffers", {}).items():
            if buffer is not None:
                yield Named(_joined(path, name), FLEETING if name in fleeting else BUFFER, buffer, module)


def of_optimizer(optimizer: Any) -> Iterator[Named]:
    """What an optimizer keeps from step to step."""
    title = type(optimizer).__name__
    numbers: dict[int, int] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            numbers.setdefault(id(parameter), len(numbers))
    for key, state in optimizer.state.items():
        number = numbers.get(id(key))
        owner = f"state[{number}]" if number is not None else "state"
        for name, value in state.items() if isinstance(state, Mapping) else ():
            if isinstance(value, torch.Tensor):
                yield Named(f"{title}.{owner}[{name!r}]", STATE, value)


def gradients_of(
    optimizer: Any, name_of: Callable[[torch.Tensor], str] = lambda parameter: "", when: str = ""
) -> Iterator[Named]:
    """Those that its next step goes by."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    for number, parameter in enumerate(parameters):
        if parameter.grad is not None:
            name = name_of(parameter) or f"parameter {number} of {type(optimizer).__name__}"
            yield Named(f"the gradient of {name}{when}", GRADIENT, parameter.grad)


def of_anything(given: object, *, gradients: bool = False, kind: str = TENSOR, name: str = "") -> Iterator[Named]:
    """Of a module, a tensor, or several of them in lists and dictionaries; TypeError names what is neither."""
    if isinstance(given, nn.Module):
        for found in of_module(given, gradients=gradients):
            yield Named(_joined(name, found.name), found.kind, found.tensor, found.owner)
    elif isinstance(given, torch.Tensor):
        yield Named(name or f"the {kind}", PARAMETER if _is_parameter(given, kind) else kind, given)
        if gradients and given.is_leaf and given.grad is not None:
            yield Named(f"{name or f'the {kind}'}.grad", GRADIENT, given.grad)
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from of_anything(value, gradients=gradients, kind=kind, name=_joined(name, str(key)))
    elif isinstance(given, str | bytes) or not hasattr(given, "__iter__"):
        raise TypeError(f"{given!r:.200} is neither a module nor a tensor, nor several of them")
    else:
        for number, value in enumerate(given):
            yield from of_anything(value, gradients=gradients, kind=kind, name=f"{name}[{number}]")


def _is_parameter(tensor: torch.Tensor, kind: str) -> bool:
    return kind == TENSOR and isinstance(tensor, nn.Parameter)


def _quantization(found: Named) -> Iterator[Named]:
    """Recognised by names, so that looking never imports bitsandbytes. Checked on 0.46 to 0.50."""
    if (packed := parametrized_state(found.owner)) is not None:
        yield from _tensors_in(found.name, {"quant_state": packed}, found.owner)
    kind = type(found.tensor)
    if kind.__name__ not in ("Params4bit", "Int8Params") or not kind.__module__.startswith("bitsandbytes"):
        return
    yield from _tensors_in(found.name, vars(found.tensor), found.owner)
    # After the first call the 8-bit scales have moved from the parameter to the module.
    state = vars(found.owner).get("state") if found.owner is not None else None
    if kind.__name__ == "Int8Params" and state is not None:
        yield from _tensors_in(f"{found.name.rpartition('.')[0]}.state", vars(state), found.owner)


def _tensors_in(name: str, values: Mapping[str, Any], owner: nn.Module | None) -> Iterator[Named]:
    for key, value in values.items():
        if isinstance(value, torch.Tensor):
            yield Named(f"{name}.{key}", QUANTIZATION, value, owner)
        elif type(value).__name__ == "QuantState":
            yield from _tensors_in(f"{name}.{key}", vars(value), owner)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
