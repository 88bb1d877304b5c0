"""What one rank says of its models to the others: of each tensor that is to be the same everywhere, no values but few.

A DTensor that is sharded is another one on each rank, and so are the parameters of a module that FSDP 1 has flattened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from pytest_memleak.values.bits import bits_of
from pytest_memleak.values.inside import has_no_values, is_known, is_wrapper, plain, reading, shape_of, values_of
from pytest_memleak.values.layout import pieces, without_repeats
from pytest_memleak.values.named import BUFFERS, Named, members
from pytest_memleak.values.readable import as_numbers

_FEW = 4
META = "unmaterialized (on meta)"


@dataclass(frozen=True)
class Said:
    """Of one tensor."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    bits: str = ""
    """Empty for one without values."""
    first: str = ""
    least: str = ""
    greatest: str = ""

    def words(self) -> str:
        text = f"{self.dtype} {list(self.shape)}"
        if not self.bits:
            return f"{text}, {META}"
        between = f", from {self.least} to {self.greatest}" if self.least else ""
        return f"{text}: {self.first}{between}" if self.first else text


@dataclass
class Summary:
    """Of one model."""

    tensors: dict[str, Said] = field(default_factory=dict)
    sharded: int = 0
    unknown: list[str] = field(default_factory=list)
    """Simulated, or in a layout whose values cannot be got at."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Summary:
        tensors = {name: Said(**one | {"shape": tuple(one["shape"])}) for name, one in data["tensors"].items()}
        return cls(tensors, data["sharded"], data["unknown"])


def summary(model: nn.Module) -> Summary:
    found = Summary()
    known: dict[int, Said] = {}
    flattened = _parts_of_fsdp_1(model)
    with reading():
        for one in members(model):
            is_flat = one.kind not in BUFFERS and (id(one.owner) in flattened or _is_flat(one.tensor))
            if is_flat or is_sharded(one.tensor):
                found.sharded += 1
            else:
                _say(one, found, known)
    return found


def _parts_of_fsdp_1(model: nn.Module) -> set[int]:
    wrappers = (one for one in nn.Module.modules(model) if type(one).__name__ == "FullyShardedDataParallel")
    return {id(part) for wrapper in wrappers for part in nn.Module.modules(wrapper)}


def _is_flat(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ == "FlatParameter"


def is_sharded(tensor: torch.Tensor) -> bool:
    """A DTensor that is not whole on each rank."""
    placements = getattr(tensor, "placements", None)
    return placements is not None and not all(one.is_replicate() for one in placements)


def _say(one: Named, found: Summary, known: dict[int, Said]) -> None:
    if id(one.tensor) not in known:
        said = _said(one)
        if said is None:
            found.unknown.append(one.name)
            return
        known[id(one.tensor)] = said
    found.tensors[one.name] = known[id(one.tensor)]


def _said(one: Named) -> Said | None:
    tensor = one.tensor
    if has_no_values(tensor):
        return Said(one.kind, _name(tensor.dtype), shape_of(tensor))
    parts = [part.detach() for part in plain(tensor)]
    whole = Said(one.kind, _name(tensor.dtype), tuple(tensor.shape))
    bits: list[str] = []
    for part in parts:
        if has_no_values(part):
            return whole
        values = values_of(part) if is_known(part) else None
        if values is None or values.layout != torch.strided or part.layout != torch.strided:
            return None
        bits.append(bits_of(values))
    # A wrapper's parts may be anything; a DTensor has one, which is the tensor.
    if len(parts) > 1 or (is_wrapper(tensor) and parts[0].dtype != tensor.dtype):
        return Said(whole.kind, whole.dtype, whole.shape, "".join(bits))
    least, greatest = _extremes(parts[0])
    return Said(whole.kind, whole.dtype, whole.shape, bits[0], _first(parts[0]), least, greatest)


def _first(tensor: torch.Tensor) -> str:
    some = next(pieces(tensor, _FEW), None)
    if some is None:
        return ""
    few = _as_floats(some)
    shown = ", ".join(_number(value) for value in few.tolist())
    return f"{shown}, …" if tensor.numel() > _FEW else shown


def _extremes(tensor: torch.Tensor) -> tuple[str, str]:
    if tensor.is_complex() or not tensor.numel():
        return "", ""
    pairs = [torch.aminmax(piece) for piece in _comparable(as_numbers(without_repeats(tensor)))]
    least, greatest = torch.stack([low for low, _ in pairs]), torch.stack([high for _, high in pairs])
    return _number(least.min().item()), _number(greatest.max().item())


def _comparable(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    for piece in pieces(tensor):
        yield _as_floats(piece)


def _as_floats(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
