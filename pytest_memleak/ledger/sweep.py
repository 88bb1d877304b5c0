"""Finds the tensors that are held in the same way as one that has been explained: a list of 10,000 is one finding."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import pairwise

import torch

from pytest_memleak.ledger.looking import LONGEST_LOOK, edges, is_a, label_of, module_tensors

_NAMED_SINGLY = 20
"""More attributes than these beside each other are one finding too: nobody reads so many names."""


def alike(steps: Sequence[object], wanted: Container[int]) -> Iterator[int]:
    """Ids of those wanted that one reaches on a path of the same shape.

    Attributes and variables keep their names on such a path; of a container, all items of the same type count; and all
    parameters and buffers below a module count as one.
    """
    level = [steps[0]]
    looked = 0
    for holder, held in pairwise(steps):
        if is_a(holder, torch.nn.Module) and any(part is steps[-1] for part in module_tensors(holder)):
            level = [part for module in level for part in module_tensors(module)]
            break
        label = label_of(holder, held)
        reached: dict[int, object] = {}
        for thing in level:
            for other, part in edges(thing):
                looked += 1
                same = type(part) is type(held) and not _is_name(other) if not _is_name(label) else other == label
                if same:
                    reached[id(part)] = part
            if looked > LONGEST_LOOK:
                break
        level = list(reached.values())
    found = dict.fromkeys(id(part) for part in level if id(part) in wanted)
    beside = {id(part) for _, part in edges(steps[-2])} if len(steps) > 1 else set()
    others = [key for key in beside if key in wanted and key not in found]
    yield from (*found, *others) if len(others) > _NAMED_SINGLY else found


def _is_name(label: str) -> bool:
    return not label.startswith(("[", "{", "(", "…", " "))
