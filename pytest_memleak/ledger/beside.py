"""The other variables of a kept frame that hold the same tensor: to delete only the one that is named frees nothing.

Only plain containers are looked into, and not far: what a variable holds through a model or an object of its own kind
is not what a reader would delete there.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Collection, Sequence

from pytest_memleak.ledger.looking import edges, frame_locals, generator_part, is_a

_MOST, _FAR = 2, 500


def beside(path: Sequence[object], wanted: Collection[int]) -> tuple[str, ...]:
    """How they are written. `path` leads down to the tensor, `wanted` are the ids of all that share its memory."""
    frame, below = _last_frame(path)
    if frame is None:
        return ()
    found = []
    for name, value in frame_locals(frame).items():
        if value is not below and (way := _way(name, value, wanted)):
            found.append(way)
    return tuple(found[:_MOST])


def _last_frame(path: Sequence[object]) -> tuple[types.FrameType | None, object]:
    """And which of its variables the path goes through."""
    for place in range(len(path) - 2, -1, -1):
        step = path[place]
        frame = step if type(step) is types.FrameType else generator_part(step, "frame")
        if frame is not None:
            return frame, path[place + 1] if path[place + 1] is not frame else path[place + 2]
    return None, None


def _way(name: str, value: object, wanted: Collection[int]) -> str:
    todo, looked = deque([(name, value)]), 0
    while todo and looked < _FAR:
        text, thing = todo.popleft()
        if id(thing) in wanted:
            return text
        if is_a(thing, dict, list, tuple):
            for label, part in edges(thing):
                looked += 1
                if looked < _FAR:
                    todo.append((text + label, part))
    return ""
