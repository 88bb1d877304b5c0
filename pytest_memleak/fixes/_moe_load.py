"""One load of transformers 5, as far as the fix `moe_experts` is concerned: what it is to quantize, and what it has."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from pytest_memleak.fixes._moe_outcome import Outcome
from pytest_memleak.fixes._moe_packing import Packed
from pytest_memleak.fixes._moe_reload import Stored
from pytest_memleak.fixes._moe_settings import Settings, chosen, is_four_bit, settings_of
from pytest_memleak.upstream.experts import ExpertParameter, expert_parameters

_NEW = "the checkpoint lacks them or has another shape, so that their values are new (quantize_experts takes them)"
_OFF_THE_CARD = ("cpu", "disk", "meta")


class Load:
    """One run of the loader; without anything to quantize it is as if it were not there."""

    def __init__(self, model: nn.Module | None = None, state_dict: Any = None, config: Any = None) -> None:
        self.outcome = Outcome(type(model).__name__)
        self.experts: dict[str, ExpertParameter] = {}
        self.packed: dict[str, Packed] = {}
        self.stored = Stored({})
        quantizer: Any = getattr(config, "hf_quantizer", None)
        self.concerned = model is not None and is_four_bit(quantizer)
        if model is None or not self.concerned:
            return
        if quantizer.pre_quantized:
            self.stored = Stored(state_dict)
            if self.stored.names:
                self.experts = {one.name: one for one in expert_parameters(model)}
            return
        self.settings = settings_of(quantizer.quantization_config, quantizer.modules_to_not_convert)
        self.outcome.settings = self.settings
        if getattr(config, "device_mesh", None) is not None:
            self.outcome.leave(expert_parameters(model), "the load is sharded by tensor parallelism")
            return
        self.experts = {one.name: one for one in to_quantize(model, self.settings, config.device_map, self.outcome)}

    @property
    def room(self) -> int:
        """How many values may be on the card before they are packed, so that with what they are packed into it is two
        experts' at most."""
        return max(one.parameter[0].numel() for one in self.experts.values()) * 3 // 2

    def take(self, name: str, done: Packed) -> None:
        self.packed[name] = done
        # Upstream initializes what has no such mark.
        parameter: Any = self.experts[name].parameter
        parameter._is_hf_initialized = True

    def put(self, model: nn.Module) -> None:
        """In place of the parameters; the outcome is complete then."""
        for name, one in self.experts.items():  # in the order of the model
            if (done := self.packed.get(name)) is not None:
                self.outcome.add(name, one.parameter.shape, done)
                done.put(one.module, one.leaf)
        if self.outcome.settings is None:
            self.outcome.leave(expert_parameters(model), "the checkpoint, which was quantized before, has them so")
        else:
            absent = [one for name, one in self.experts.items() if name not in self.packed]
            self.outcome.leave(absent, _NEW)


class Loads(threading.local):
    """What the present thread is loading."""

    def __init__(self) -> None:
        self.innermost = Load()


def to_quantize(model: nn.Module, settings: Settings, device_map: Any, outcome: Outcome) -> list[ExpertParameter]:
    """The experts that a load quantizes; the outcome gets to know which ones it does not, and why."""
    away = [one for one in expert_parameters(model) if _is_offloaded(one.name, device_map or {})]
    found = chosen(model, settings, [one.name for one in away])
    outcome.leave(away, "device_map puts them on the CPU or the disk")
    quantized = {one.name for one in [*found, *away]}
    skipped = [one for one in expert_parameters(model) if one.name not in quantized]
    outcome.leave(skipped, "llm_int8_skip_modules names them")
    return found


def _is_offloaded(name: str, device_map: dict[str, Any]) -> bool:
    """Whether it goes elsewhere than the rest; a model that is on the CPU as a whole is quantized there."""
    devices = {_kind(device) for device in device_map.values()}
    place = max((key for key in device_map if not key or f"{name}.".startswith(f"{key}.")), key=len, default=None)
    return place is not None and len(devices) > 1 and _kind(device_map[place]) in _OFF_THE_CARD


def _kind(device: Any) -> str:
    return "card" if isinstance(device, int) else str(device).partition(":")[0]
