"""Which list of modules is a decoder's blocks: modules that are alike, one behind the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from torch import nn

from pytest_memleak.planner.transformers_model import count_weights

NamedModule = tuple[str, nn.Module]


def block_list(
    model: nn.Module, core: nn.Module, without: Collection[nn.Module], count: int | None
) -> list[NamedModule]:
    """The blocks by their names in the model, or none. They are in the core of it, and not in what it is to be without.

    A list as long as the config says that there are layers is preferred: others may be heavier (embeddings of n-grams).
    Of several the heaviest is meant. What has another inside, as blocks have lists of experts, comes first and is no
    lighter.
    """
    inside = set(core.modules())
    elsewhere = {module for part in without for module in part.modules()}
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if module in inside and module not in elsewhere and _may_be_blocks(module)
    ]
    of_count = [(name, module) for name, module in lists if len(elements(name, module)) == count]
    candidates = of_count or [(name, module) for name, module in lists if _is_repeated(module)]
    name, found = max(candidates, key=lambda one: count_weights(one[1]), default=("", None))
    return [] if found is None else elements(name, found)


def elements(name: str, module: nn.Module) -> list[NamedModule]:
    """A list may hold one module twice, which `named_children` says once."""
    return [(f"{name}.{leaf}" if name else leaf, child) for leaf, child in module._modules.items() if child is not None]


def _may_be_blocks(module: nn.Module) -> bool:
    if not count_weights(module):
        return False
    if isinstance(module, nn.Sequential):  # a small network of layers is one too
        children = list(module.children())
        return len({type(child) for child in children}) == 1 and all(list(child.children()) for child in children)
    return isinstance(module, nn.ModuleList)


def _is_repeated(module: nn.Module) -> bool:
    """Mixed decoders have blocks of more than one class; a list of one thing and another is no decoder."""
    classes = Counter(type(child) for child in module._modules.values())
    return max(classes.values()) > 1
