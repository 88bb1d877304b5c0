"""One step of training, measured part by part.

Blocks of one shape take the same, so that one of each is enough: the others hand on what they are given. Where a shape
has several blocks, each runs in another mode, and one step tells all; where it has one, it takes a step for each mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_memleak.errors import BadInput
from pytest_memleak.planner import marks as mark
from pytest_memleak.planner.levels import Levels, levels_of
from pytest_memleak.planner.marks import Marks
from pytest_memleak.planner.optimizing import OptimizerCost
from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.profile import BlockCost, Profile, Stretch
from pytest_memleak.planner.speeds import products_of
from pytest_memleak.planner.steps import Step

_MODES = (Mode.NONE, Mode.CHECKPOINT, Mode.OFFLOAD)


def profile(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    shapes: Sequence[Hashable],
    batch: Mapping[str, Any],
    kind: str = "text",
    optimizer: OptimizerCost | None = None,
) -> Profile:
    """`shapes`: equal for blocks that take the same. `batch`: what the model is called with, on its device."""
    device = next(model.parameters()).device
    levels = levels_of(device)
    try:
        with _as_it_was(model, device):
            steps, groups = _steps(model, blocks, shapes, batch, levels, device)
            return _read(model, blocks, steps, groups, kind, levels.how, optimizer or OptimizerCost())
    finally:
        levels.close()


def _steps(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    shapes: Sequence[Hashable],
    batch: Mapping[str, Any],
    levels: Levels,
    device: torch.device,
) -> tuple[list[Step], list[list[int]]]:
    """As many as it takes, and the groups of blocks that take the same."""
    # The first step makes what is made once (workspaces, tables), and tells how blocks are called.
    last_of_each = {shape: block for block, shape in enumerate(shapes)}
    first = Step(dict.fromkeys([0, *last_of_each.values()], Mode.NONE), levels, device).run(model, blocks, batch)
    groups: dict[Hashable, list[int]] = {}
    for block, shape in enumerate(shapes):
        # The first block saves less than the others where what it gets takes no gradient.
        alone = block == 0 and not first.inputs.require_grad
        groups.setdefault((shape, alone), []).append(block)
    as_groups = list(groups.values())
    steps = [Step(modes, levels, device, first.as_tuple).run(model, blocks, batch) for modes in _rounds(as_groups)]
    if levels.how == "predicted":
        for step in steps:
            step.marks.timed_as(_counted(step, model, blocks, batch, levels, device))
    return steps, as_groups


def _counted(
    step: Step,
    model: nn.Module,
    blocks: Sequence[nn.Module],
    batch: Mapping[str, Any],
    levels: Levels,
    device: torch.device,
) -> Marks:
    """The same step once more, timed by what it computes: counting takes operations apart, and so memory of its own."""
    products = products_of(device)
    with FlopCounterMode(display=False) as counter:
        again = Step(step.modes, levels, device, step.as_tuple, clock=lambda: counter.get_total_flops() / products)
        return again.run(model, blocks, batch).marks


def _rounds(groups: Sequence[Sequence[int]]) -> Iterator[dict[int, Mode]]:
    """In which step which block runs in which mode, so that each group has run in each."""
    for number in range(len(_MODES)):
        modes: dict[int, Mode] = {}
        for members in groups:
            chosen = members[-len(_MODES) :]
            wanted = _MODES[number * len(chosen) : (number + 1) * len(chosen)]
            modes |= dict(zip(chosen, wanted, strict=False))
        if modes:
            yield modes


def _read(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    steps: Sequence[Step],
    groups: Sequence[Sequence[int]],
    kind: str,
    how: str,
    optimizer: OptimizerCost,
) -> Profile:
    costs: dict[int, dict[Mode, BlockCost]] = {block: {} for block in range(len(blocks))}
    for members in groups:
        for mode in _MODES:
            cost, released = _cost(steps, members, mode, how == "predicted")
            for block in members:
                costs[block][mode] = cost if block else _of_the_first(cost, released)
    step = steps[0]
    after = step.marks.stretch(mark.BEHIND)
    if not step.inputs.kept.get(0, True):
        # Counted as held until the first block's way back: in some modes it is.
        after = replace(after, peak=after.peak + step.inputs.bytes, grown=after.grown + step.inputs.bytes)
    trained = [one for one in model.parameters() if one.requires_grad]
    in_blocks = {id(one) for block in blocks for one in block.parameters()}
    return Profile(
        kind=kind,
        how=how,
        base=step.marks.base + optimizer.kept(sum(one.nbytes for one in trained)),
        before=step.marks.stretch(mark.START),
        blocks=tuple(costs[block] for block in range(len(blocks))),
        after=after,
        end=step.marks.stretch(mark.INPUT),
        optimizer=Stretch(optimizer.peak(sum(one.nbytes for one in trained)), 0),
        rest_gradients=sum(one.nbytes for one in trained if id(one) not in in_blocks),
    )


def _cost(steps: Sequence[Step], members: Sequence[int], mode: Mode, predicted: bool) -> tuple[BlockCost, int]:
    """Of a block in the middle, and how much of what it is given it releases."""
    step, block = next((step, block) for step in steps for block in reversed(members) if step.modes.get(block) is mode)
    released = 0 if step.inputs.kept.get(block, True) else step.inputs.bytes
    forward, backward = step.marks.stretch(mark.FORWARD, block), step.marks.backward(block)
    if mode is Mode.OFFLOAD and predicted:
        # Copies are no products: how long they take is left to the links.
        forward, backward = (
            replace(forward, seconds=0.0),
            replace(backward, stretch=replace(backward.stretch, seconds=0.0)),
        )
    if block == 0:
        # The model's own code holds it longer.
        forward = replace(forward, grown=forward.grown - released)
    return BlockCost(forward, backward.stretch, backward.with_gradients), released


def _of_the_first(cost: BlockCost, released: int) -> BlockCost:
    """What it is given stays until its way back: so long it is held by whoever is in the middle of a forward pass."""
    return replace(
        cost,
        forward=replace(cost.forward, grown=cost.forward.grown + released),
        backward=replace(cost.backward, grown=cost.backward.grown - released),
    )


@contextlib.contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Profiled steps leave no gradient behind, and the program's random numbers are as if there had been none."""
    if any(one.grad is not None for one in model.parameters()):
        raise BadInput("a step is profiled from its start: call zero_grad() before, there are gradients of another one")
    training = [(module, module.training) for module in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model.train()
        try:
            yield
        finally:
            model.zero_grad(set_to_none=True)
            for module, was in training:
                module.training = was
