"""Expert tensors that were saved in 4 bits: taken as they are, and saved so again.

bitsandbytes stores such a tensor under its own name, and beside it what undoes it: ``gate_up_proj.absmax`` and so on,
as it does for layers. transformers knows that form of layers alone. It would tell of a tensor of the wrong shape.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, MutableSet
from importlib import import_module
from typing import Any

import torch
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes._moe_packing import Packed
from pytest_memleak.upstream.experts import expert_parameters

_UNDOES = re.compile(r"(?P<name>.+)\.quant_state\.bitsandbytes__\w+")


class Stored:
    """What a checkpoint has of them."""

    def __init__(self, state_dict: Mapping[str, Any]) -> None:
        self.names: dict[str, dict[str, Any]] = {}
        """By the name in the checkpoint: what undoes it."""
        self._tensors = state_dict
        self._read: set[str] = set()
        for key in state_dict:
            match = _UNDOES.fullmatch(key)
            if match is None or len(_shape(state_dict[key])) != 3:
                continue
            name = match["name"]
            self.names[name] = {
                other.removeprefix(f"{name}."): one for other, one in state_dict.items() if other.startswith(f"{name}.")
            }

    def read(self, mapping: Any, name: str) -> Packed | None:
        """What the load collected for a tensor of the model, if it is one of those."""
        stored = next((source for source in mapping.layer_targets[name] if source in self.names), None)
        if stored is None:
            return None
        self._read.add(stored)
        readers = [one for group in mapping.collected_tensors.values() for one in group]
        device = readers[0].device
        undoes = {key: one[...].to(device) for key, one in self.names[stored].items()}
        state = import_module("bitsandbytes.functional").QuantState.from_dict(undoes, device=torch.device(device))
        return Packed(self._tensors[stored][...].to(device), state)

    def conclude(self, taken: Collection[str], unexpected: MutableSet[str]) -> None:
        """After the load. What undoes a tensor is nothing that it lacked a place for."""
        if left := sorted(set(self.names) - self._read):
            raise BadInput(
                f"the checkpoint has {len(left)} expert tensors in 4 bits that this model has no expert parameter for, "
                f"such as {left[0]}: it was saved from another model, or by a release of transformers that has its "
                "experts in another form"
            )
        prefixes = tuple(f"{name}." for name in taken)
        for key in [key for key in unexpected if key.startswith(prefixes)]:
            unexpected.discard(key)


def packed_in(files: Iterable[str], model: nn.Module) -> frozenset[str]:
    """The experts of a model that these files have in 4 bits, by their headers.

    Names in a file may differ from the model's in what stands before a layer's number and behind it: they are told by
    the numbers and by how they end.
    """
    ends: set[tuple[str, ...]] = set()
    for file in (str(one) for one in files):
        if not file.endswith(".safetensors"):
            continue
        with import_module("safetensors").safe_open(file, framework="pt") as checkpoint:
            found = filter(None, map(_UNDOES.fullmatch, checkpoint.keys()))
            ends.update(_numbers_and_end(match["name"]) for match in found)
    return frozenset(one.name for one in expert_parameters(model) if _numbers_and_end(one.name) in ends)


def _numbers_and_end(name: str) -> tuple[str, ...]:
    parts = name.split(".")
    return (*(part for part in parts if part.isdigit()), *parts[-2:])


def _shape(undoes: Any) -> list[int]:
    """Of the tensor that it undoes, as bitsandbytes wrote it down: JSON in bytes."""
    try:
        shape: list[int] = json.loads(bytes(undoes[...].tolist()).decode())["shape"]
    except ValueError:
        # Upstream cuts it in two where it takes a quantized layer apart to save it (MiniMax M3's shared experts), and
        # loads what is left. It is no expert tensor's: these are kept together.
        return []
    return shape


def keep_together(model: nn.Module, names: Collection[str]) -> None:
    """Saving undoes what loading did to names and tensors. What is packed cannot be taken apart, and what stands beside
    it is not: some releases cannot read a layer's experts if they are partly one tensor and partly many.
    """
    as_loaded = [name.replace(".base_layer", "") for name in names]  # within PEFT's wrappers they are called otherwise
    for module in model.modules():  # and it is a part of PEFT's model that was loaded
        if conversions := vars(module).get("_weight_conversions"):
            left = [one for one in conversions if not _takes_apart(one, as_loaded)]
            vars(module)["_weight_conversions"] = left


def _takes_apart(conversion: Any, names: Collection[str]) -> bool:
    if not hasattr(conversion, "operations"):
        return False
    patterns = [re.split(r"\\\d", target) for target in conversion.target_patterns]
    return any(all(part in name for part in parts) for parts in patterns for name in names)
