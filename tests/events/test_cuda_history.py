"""What was alive at the peak, from traces as torch's allocator writes them."""

from __future__ import annotations

from typing import Any

import torch

from pytest_memleak.events.cuda_history import at_peak, still_there
from pytest_memleak.events.places import BACKWARD, Place

TORCH = {"filename": torch.__file__, "name": "empty", "line": 1}
LIBRARY = {"filename": "/usr/lib/python3/site-packages/somelib/layers.py", "name": "forward", "line": 12}
USER = {"filename": "/nowhere/train.py", "name": "main", "line": 7}


def alloc(address: int, size: int, *frames: dict[str, Any], time: int = 0) -> dict[str, Any]:
    return {"action": "alloc", "addr": address, "size": size, "frames": list(frames), "time_us": time}


def free(address: int, size: int, time: int = 0) -> list[dict[str, Any]]:
    return [
        {"action": action, "addr": address, "size": size, "frames": [], "time_us": time}
        for action in ("free_requested", "free_completed")
    ]


def test_the_peak_is_found_and_put_down_to_lines() -> None:
    entries = [
        alloc(1, 100, TORCH, USER),
        alloc(2, 50, TORCH, LIBRARY, USER),
        *free(1, 100),
        alloc(3, 500, TORCH, LIBRARY, TORCH, USER),
        alloc(1, 30, TORCH),  # the address is used again
        *free(3, 500),
        alloc(4, 40, USER),
    ]
    found = at_peak(entries, {1: 30, 2: 50, 4: 40})
    held = {place: (size, blocks) for place, size, blocks in found.held}
    assert held == {
        Place("somelib/layers.py:12", "/nowhere/train.py:7"): (550, 2),
        Place(BACKWARD, ""): (30, 1),
    }
    assert (found.level, found.before) == (580, 0)


def test_what_lives_at_the_end_is_known_by_its_address() -> None:
    entries = [
        *free(9, 1000),
        alloc(1, 100, TORCH, USER),
        alloc(2, 50, LIBRARY, USER),
        *free(1, 100),
        alloc(1, 30, LIBRARY),  # the address is used again
        alloc(3, 10, USER),
        *free(3, 10),
    ]
    assert still_there(entries) == {
        2: Place("somelib/layers.py:12", "/nowhere/train.py:7"),
        1: Place("somelib/layers.py:12", ""),
    }


def test_what_was_there_before_is_told_apart() -> None:
    entries = [*free(9, 1000), alloc(1, 100, USER)]
    found = at_peak(entries, {1: 100, 7: 11})
    # Released at once, it was there when most was allocated all the same.
    assert (found.level, found.before, found.held) == (1011, 1011, ())
    entries = [alloc(1, 100, USER), *free(9, 1000)]
    found = at_peak(entries, {1: 100, 7: 11})
    assert (found.level, found.before, [one.bytes for one in found.held]) == (1111, 1011, [100])


def test_a_peak_in_a_pause_is_none() -> None:
    entries = [
        alloc(1, 100, USER, time=10),
        alloc(2, 900, USER, time=20),
        *free(2, 900, time=25),
        alloc(3, 200, LIBRARY, time=30),
    ]
    found = at_peak(entries, {1: 100, 3: 200}, [(15, 28)])
    assert (found.level, sorted(one.bytes for one in found.held)) == (300, [100, 200])


def test_what_was_made_in_a_pause_is_held_after_it() -> None:
    entries = [alloc(1, 100, USER, time=10), alloc(2, 50, USER, time=20)]
    found = at_peak(entries, {1: 100, 2: 50}, [(5, 15)])
    assert (found.level, [(one.bytes, one.blocks) for one in found.held]) == (150, [(150, 2)])


def test_nothing() -> None:
    assert at_peak([], {}).held == ()
