"""One step of training, measured part by part.

Blocks of one shape take the same, so that one of each is enough: the others hand on what they are given. There is a
step for each mode, because what blocks share is held as long as one of them wants it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_memleak.planner import marks as mark
from pytest_memleak.planner.levels import Levels, levels_of
from pytest_memleak.planner.marks import Backward, Marks
from pytest_memleak.planner.optimizing import OptimizerCost, trained_beside
from pytest_memleak.planner.plan import Mode
from pytest_memleak.planner.products import products_of_bitsandbytes
from pytest_memleak.planner.profile import BlockCost, Profile, Stretch
from pytest_memleak.planner.restoring import as_it_was
from pytest_memleak.planner.speeds import products_of
from pytest_memleak.planner.steps import Step

_MODES = (Mode.NONE, Mode.CHECKPOINT, Mode.OFFLOAD)
_TIMES = 3
"""Of a step that is timed: the fastest counts."""


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
        with as_it_was(model, device):
            measured = _measure(model, blocks, shapes, batch, levels, device)
            return _read(model, blocks, measured, kind, levels.how, optimizer or OptimizerCost())
    finally:
        levels.close()


@dataclass(frozen=True)
class _Measured:
    """A step for each mode, in which one block of each group ran in it."""

    steps: Mapping[Mode, Step]
    groups: Sequence[Sequence[int]]
    seconds: Mapping[Mode, Marks]
    """Of steps that were run for their time. Where none can be timed, of one in which all is kept: what its operations
    would take."""

    def cost(self, members: Sequence[int], mode: Mode) -> tuple[BlockCost, BlockCost]:
        """Of a block in the middle, and of the first one."""
        step, block = self.steps[mode], members[-1]
        forward, backward = self._timed(mode, block)
        kept = step.given.kept.get(block, True)
        own, first_s = step.given.bytes_of(block), step.given.bytes_of(0)
        left, given = (0, own) if kept else (own, 0)
        # The first input may be held whatever the block does: one that adapters have made a leaf is its gradient's.
        held = step.held.get(block, {})
        with_first = dict(held)
        if kept or step.given.kept.get(0, True):
            with_first[0] = held.get(0, 0) + first_s
        if block == 0:  # its input counts as shared, and was in neither
            first = BlockCost(forward, backward.stretch, backward.with_gradients, with_first)
            return replace(_moved(first, forth=-left, back=-given), holds=held), first
        middle = BlockCost(forward, backward.stretch, backward.with_gradients, held)
        return middle, replace(_moved(middle, forth=left, back=given), holds=with_first)

    def _timed(self, mode: Mode, block: int) -> tuple[Stretch, Backward]:
        marks = self.steps[mode].marks
        forward, backward = marks.stretch(mark.FORWARD, block), marks.backward(block)
        timing = self.seconds.get(mode, self.seconds.get(Mode.NONE))
        if timing is None:
            return forward, backward
        forth = timing.stretch(mark.FORWARD, block).seconds
        back = timing.backward(block).stretch.seconds
        if mode not in self.seconds:
            if mode is Mode.CHECKPOINT:
                back += forth
            elif mode is Mode.OFFLOAD:
                forth = back = 0.0  # copies are no operations: how long they take is left to the links
        timed = replace(backward, stretch=replace(backward.stretch, seconds=back))
        return replace(forward, seconds=forth), timed


def _moved(cost: BlockCost, forth: int, back: int) -> BlockCost:
    return replace(
        cost,
        forward=replace(cost.forward, grown=cost.forward.grown + forth),
        backward=replace(cost.backward, grown=cost.backward.grown + back),
    )


def _measure(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    shapes: Sequence[Hashable],
    batch: Mapping[str, Any],
    levels: Levels,
    device: torch.device,
) -> _Measured:
    # The first step makes what is made once, workspaces and tables, and tells how blocks are called. Each thread has
    # workspaces of its own: that of the way back needs those of the way forth, too, where blocks are computed again.
    several = [0, *{shape: block for block, shape in enumerate(shapes)}.values()]
    first = Step(dict.fromkeys(several, Mode.CHECKPOINT), levels, device).run(model, blocks, batch)
    groups: dict[Hashable, list[int]] = {}
    takes_gradient = first.given.require_grad
    for block, shape in enumerate(shapes):
        # A block saves less than others of its shape where what it gets takes no gradient: the first one, and the
        # first that is trained behind frozen ones.
        alone = block == 0 and not takes_gradient
        groups.setdefault((shape, alone, takes_gradient), []).append(block)
        takes_gradient |= any(weight.requires_grad for weight in blocks[block].parameters())
    chosen = [members[-1] for members in groups.values()]
    seconds: dict[Mode, Marks] = {}
    if levels.how == "predicted":
        counting = Step(dict.fromkeys([*several, *chosen], Mode.NONE), levels, device, first)
        seconds[Mode.NONE] = _counted(counting, model, blocks, batch, device)
    steps = {
        mode: Step(dict.fromkeys(chosen, mode), levels, device, first).run(model, blocks, batch) for mode in _MODES
    }
    if device.type == "cuda" and levels.how != "predicted":
        for mode in _MODES:
            # To look at each gradient the card is waited for, which takes as long as the work; and the first step of a
            # kind makes what is made once.
            again = [
                Step(dict.fromkeys(chosen, mode), levels, device, first, tells_gradients=False) for _ in range(_TIMES)
            ]
            runs = [step.run(model, blocks, batch).marks for step in again]
            seconds[mode] = min(runs, key=lambda marks: marks.seconds)
    return _Measured(steps, list(groups.values()), seconds)


def _counted(
    step: Step, model: nn.Module, blocks: Sequence[nn.Module], batch: Mapping[str, Any], device: torch.device
) -> Marks:
    """Timed by what it computes. Counting takes operations apart, and so memory of its own, which is not looked at."""
    products = products_of(device)
    with FlopCounterMode(display=False, custom_mapping=products_of_bitsandbytes()) as counter:
        step.marks.clock = lambda: counter.get_total_flops() / products
        return step.run(model, blocks, batch).marks


def _read(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    measured: _Measured,
    kind: str,
    how: str,
    optimizer: OptimizerCost,
) -> Profile:
    costs: dict[int, dict[Mode, BlockCost]] = {block: {} for block in range(len(blocks))}
    for members in measured.groups:
        for mode in _MODES:
            middle, first = measured.cost(members, mode)
            for block in members:
                costs[block][mode] = middle if block else first
    step = measured.steps[Mode.NONE]
    in_blocks = {id(one): one.nbytes for block in blocks for one in block.parameters() if one.requires_grad}
    rest = {name: size for name, size in trained_beside(model, blocks).items() if name in step.reached}
    trained = sum(in_blocks.values()) + sum(rest.values())

    def part(what: str) -> Stretch:
        found = step.marks.stretch(what)
        timing = measured.seconds.get(Mode.NONE)
        return found if timing is None else replace(found, seconds=timing.stretch(what).seconds)

    return Profile(
        kind=kind,
        how=how,
        base=step.marks.base + optimizer.kept(trained),
        before=part(mark.START),
        blocks=tuple(costs[block] for block in range(len(blocks))),
        after=part(mark.BEHIND),
        end=part(mark.INPUT),
        shared=step.shared,
        optimizer=Stretch(optimizer.peak(trained), 0),
        rest=rest,
    )
