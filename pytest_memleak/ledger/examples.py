"""What the largest block of each place looks like as a tensor, and of which parameter of a model it is the memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from pytest_memleak.events.places import Place
from pytest_memleak.events.recording import Recording
from pytest_memleak.events.storages import device_of
from pytest_memleak.ledger.graph import read_attribute, shape_of, storage_key
from pytest_memleak.ledger.looking import is_a, own_dict


class Example(NamedTuple):
    shape: str
    """``bfloat16 [4096, 4096]``."""
    parameter: str = ""
    """``model.layers.0.mlp.up_proj.weight and 12 more``, ``gradient of lm_head.weight``; empty for other tensors."""


def examples_of(
    recording: Recording, tensors: Iterable[torch.Tensor], objects: Iterable[object]
) -> dict[Place, Example]:
    """`objects`: where models are looked for. Nothing is kept."""
    names: dict[int, str] = {}
    known: dict[int, torch.Tensor] = {}  # parameters first: of blocks of the same size, the first has its name
    for name, tensor in _parameters(_roots(objects)):
        key = storage_key(tensor)
        if key is not None and device_of(tensor) == recording.device:
            names.setdefault(key[0], name)
            known[id(tensor)] = tensor
    known.update((id(tensor), tensor) for tensor in tensors)
    largest: dict[Place, tuple[int, torch.Tensor]] = {}
    named: dict[Place, dict[int, str]] = {}
    for tensor in known.values():
        key, place = storage_key(tensor), recording.place_of(tensor)
        if key is None or place is None:
            continue
        if key[0] in names:
            named.setdefault(place, {})[key[0]] = names[key[0]]
        if place not in largest or key[1] > largest[place][0]:
            largest[place] = key[1], tensor
    return {
        place: Example(shape_of(tensor), _name_of(tensor, named.get(place, {})))
        for place, (_, tensor) in largest.items()
    }


def _name_of(tensor: torch.Tensor, named: Mapping[int, str]) -> str:
    key = storage_key(tensor)
    name = named.get(key[0], "") if key is not None else ""
    return f"{name} and {len(named) - 1:,} more" if name and len(named) > 1 else name


def _roots(objects: Iterable[object]) -> list[dict[str, Any]]:
    """The modules that are no other's part, as what they have."""
    kinds: dict[int, bool] = {}  # as in `living_tensors`
    modules: dict[int, dict[str, Any]] = {}
    for thing in objects:
        kind = id(type(thing))
        if kind not in kinds:
            kinds[kind] = is_a(thing, torch.nn.Module)
        if kinds[kind]:
            modules[id(thing)] = own_dict(thing) or {}
    parts = {id(part) for members in modules.values() for _, part in _items(members, "_modules")}
    return [members for key, members in modules.items() if key not in parts]


def _parameters(roots: Iterable[dict[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and gradients, by the names that a state dict has."""
    todo = [("", members) for members in roots]
    seen: set[int] = set()
    while todo:
        path, members = todo.pop()
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _items(members, kind):
                if is_a(tensor, torch.Tensor):
                    yield from ((path + name, part) for part in _with_memory(tensor))
                    if kind == "_parameters" and is_a(gradient := read_attribute(tensor, "grad"), torch.Tensor):
                        yield from ((f"gradient of {path}{name}", part) for part in _with_memory(gradient))
        parts = [(name, part) for name, part in _items(members, "_modules") if is_a(part, torch.nn.Module)]
        # The first is the next, as in a state dict: of tied weights, the first name is the model's own choice.
        for name, part in reversed(parts):
            if id(part) not in seen:
                seen.add(id(part))
                todo.append((f"{path}{name}.", own_dict(part) or {}))


def _with_memory(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor, or those inside of a wrapper: the local shard of a DTensor has its name."""
    if type(tensor) is torch.Tensor or not hasattr(type(tensor), "__tensor_flatten__"):
        return [tensor]
    try:
        wrapper: Any = tensor
        with torch._C.DisableTorchFunctionSubclass():
            names = wrapper.__tensor_flatten__()[0]
        inside = [getattr(tensor, name) for name in names]
    except Exception:  # noqa: BLE001 - a wrapper's own code, which may not have been built to the end
        return [tensor]
    return [part for one in inside if is_a(one, torch.Tensor) for part in _with_memory(one)]


def _items(members: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    found: Any = members.get(kind)
    if not is_a(found, dict):
        return []
    return [(name, part) for name, part in list(dict.items(found)) if type(name) is str]
