"""The experts of a mixture, found in the model itself: stacks of matrices, one for each expert of a layer.

There is no list of architectures. A parameter belongs to the experts if it is a stack of matrices and its module is one
of experts, which shows in one of two ways:

- a router stands beside it: a matrix with one row for each matrix of the stack, which reads what one of these reads or
  writes. That is what a mixture is, whatever its author called it (JetMoE: ``mlp.input_linear.weight``);
- the module says so, by its class or by the name under which it stands. Experts that all tokens go through have no
  router (Inkling: ``mlp.shared_experts``).

Convolutions have 3D weights too, and are what is left out by type. Norms and biases are no stacks of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

# Its class is private, and has been there since torch 1.0.
from torch.nn.modules.conv import _ConvNd

_LEVELS = 2
"""How far above the experts their router may be: in the block that holds both, or in the one around it."""


@dataclass(frozen=True)
class ExpertParameter:
    path: str
    """The module's; empty for the model itself."""
    leaf: str
    module: nn.Module
    parameter: nn.Parameter

    @property
    def name(self) -> str:
        return f"{self.path}.{self.leaf}" if self.path else self.leaf


def expert_parameters(model: nn.Module) -> list[ExpertParameter]:
    """Those of the model, in its order, each once; what has been quantized already is none."""
    found: list[ExpertParameter] = []
    modules = dict(model.named_modules())
    for path, module in modules.items():
        stacks = {leaf: one for leaf, one in module.named_parameters(recurse=False) if is_stack(one)}
        if not stacks or isinstance(module, _ConvNd):
            continue
        routed = any(_is_routed(modules, path, stack) for stack in stacks.values())
        if routed or _says_so(path, module):
            found.extend(ExpertParameter(path, leaf, module, stack) for leaf, stack in stacks.items())
    return found


def is_stack(parameter: torch.Tensor) -> bool:
    """Whether it is a stack of matrices: biases may be 3D as well, and positions, with a side of 1."""
    return parameter.dim() == 3 and min(parameter.shape) > 1 and parameter.is_floating_point()


def _is_routed(modules: dict[str, nn.Module], path: str, stack: torch.Tensor) -> bool:
    count, *sides = stack.shape
    return any(rows == count and columns in sides for rows, columns in _matrices_beside(modules, path))


def _matrices_beside(modules: dict[str, nn.Module], path: str) -> Iterator[tuple[int, int]]:
    """Rows and columns of what the blocks around a module hold; its own biases are no router."""
    experts = set(modules[path].modules())
    for _ in range(_LEVELS):
        path, _, own = path.rpartition(".")
        block = modules[path]
        if not own or isinstance(block, nn.ModuleList):
            return  # layers of a model: what stands beside one is another, and not its router
        for module in block.modules():
            if module in experts:
                continue
            if isinstance(module, nn.Linear):
                yield module.out_features, module.in_features  # its weight is packed where it is quantized
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 2:
                    yield parameter.shape[0], parameter.shape[1]


def _says_so(path: str, module: nn.Module) -> bool:
    names = [type(module).__name__, *path.split(".")[-2:]]
    return any("expert" in name.lower() for name in names)
