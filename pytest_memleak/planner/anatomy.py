"""A model's parts, found in the model itself: the decoder's blocks, and the towers beside them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.block_lists import NamedModule, block_list, elements
from pytest_memleak.planner.towers import Tower, find_towers
from pytest_memleak.planner.transformers_model import decoder, text_config, transformers_model

_LAYER_TYPES = ("layer_type", "attention_type", "is_sliding", "sliding_window")
"""Where modules say of which kind they are: with the same weights they may still take different memory."""


@dataclass(frozen=True)
class Block:
    name: str
    module: nn.Module

    @cached_property
    def shape(self) -> Hashable:
        """Equal for blocks that take the same memory: their number and their weights' values are not in it."""
        parameters = self.module.named_parameters()
        return (
            tuple((name, *_kind(module)) for name, module in self.module.named_modules()),
            tuple((name, type(one), one.shape, one.dtype, one.requires_grad) for name, one in parameters),
        )


@dataclass(frozen=True)
class Anatomy:
    blocks: tuple[Block, ...]
    """In the order in which they stand in the model, or in that of the names that were given."""
    towers: tuple[Tower, ...]


def anatomy(model: nn.Module, blocks: Sequence[str] | None = None) -> Anatomy:
    """Blocks that are given by name are taken as they are; the name of a list stands for what is in it."""
    known = transformers_model(model)
    if blocks is not None:
        given = _given(model, blocks)
        return Anatomy(given, find_towers(model, known, None, [block.module for block in given]))
    core = model if known is None else decoder(known)
    towers = towers_of(model)
    count = None if known is None else getattr(text_config(known), "num_hidden_layers", None)
    beside = [tower.module for tower in towers]
    # Some call their head the decoder (ModernBertDecoder), which transformers then takes for it.
    found = block_list(model, core, beside, count) or block_list(model, model, beside, count)
    if not found:
        raise BadInput(_nothing(model, towers, count))
    return Anatomy(_as_blocks(found), towers)


def towers_of(model: nn.Module) -> tuple[Tower, ...]:
    """The same, of models without blocks too."""
    known = transformers_model(model)
    return find_towers(model, known, None if known is None else decoder(known))


def _as_blocks(modules: Collection[NamedModule]) -> tuple[Block, ...]:
    return tuple(Block(name, module) for name, module in modules)


def _given(model: nn.Module, names: Sequence[str]) -> tuple[Block, ...]:
    if isinstance(names, str):
        raise BadInput(f"blocks={names!r}: give a list of names, as [{names!r}]")
    modules = dict(model.named_modules(remove_duplicate=False))
    found: list[NamedModule] = []
    for name in names:
        if not name or name not in modules:
            raise BadInput(
                f"blocks: {name!r} is no module in {type(model).__name__}: names are as in model.named_modules()"
            )
        module = modules[name]
        found += elements(name, module) if isinstance(module, nn.ModuleList) else [(name, module)]
    if not found:
        raise BadInput(f"blocks={list(names)!r} names no block")
    _refuse_overlap(found)
    return _as_blocks(found)


def _refuse_overlap(found: list[NamedModule]) -> None:
    """What is in two blocks would be counted twice, and moved by one while the other runs."""
    for name, module in found:
        outer = next((one for one, other in found if one != name and module in set(other.modules())), None)
        if outer is not None:
            raise BadInput(f"blocks: {name!r} is in {outer!r}, or the same: give names of blocks that do not overlap")
    if len(set(found)) < len(found):
        raise BadInput(f"blocks: a name is given twice in {[name for name, _ in found]!r}")


def _kind(module: nn.Module) -> tuple[object, ...]:
    says = (getattr(module, name, None) for name in _LAYER_TYPES)
    keeps_a_mask = isinstance(module, nn.Dropout) and module.p > 0
    return (type(module), keeps_a_mask, *(one if isinstance(one, (str, int)) else None for one in says))


def _nothing(model: nn.Module, towers: Collection[Tower], count: int | None) -> str:
    length = "" if count is None else f"as many as its config has hidden layers ({count}), or "
    beside = ", ".join(tower.name for tower in towers)
    return (
        f"{type(model).__name__} has no blocks: looked for a torch.nn.ModuleList, or a torch.nn.Sequential of modules "
        f"of one class, with {length}at least two that are alike"
        + (f", outside of its towers ({beside})" if beside else "")
        + '. Name them: anatomy(model, blocks=["layers.0", "layers.1"]), or blocks=["layers"] for a whole list'
    )
