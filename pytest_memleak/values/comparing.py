"""Two ranks' summaries held against each other: what differs, in words."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_memleak.values.summary import Said, Summary


def differences(theirs: Sequence[Summary], mine: Sequence[Summary], rank: int) -> tuple[list[str], int]:
    """Of rank 0's models and this rank's, in their order; and how many tensors were compared."""
    found: list[str] = []
    compared = 0
    several = max(len(theirs), len(mine)) > 1
    for number in range(max(len(theirs), len(mine))):
        prefix = f"model {number + 1}: " if several else ""
        left = theirs[number] if number < len(theirs) else Summary()
        right = mine[number] if number < len(mine) else Summary()
        for name in dict.fromkeys((*left.tensors, *right.tensors)):
            if name in left.unknown or name in right.unknown:
                continue
            if _are_nowhere(left.tensors.get(name), right.tensors.get(name)):
                continue
            compared += 1
            if difference := _difference(left.tensors.get(name), right.tensors.get(name), rank):
                found.append(f"{prefix}{name} {difference}")
    return found, compared


def _are_nowhere(theirs: Said | None, mine: Said | None) -> bool:
    """On meta on both ranks, and alike: there is no value to be another one."""
    return theirs is not None and theirs == mine and not theirs.bits


def _difference(theirs: Said | None, mine: Said | None, rank: int) -> str:
    if theirs is None or mine is None:
        one, where = (theirs, "0") if theirs is not None else (mine, str(rank))
        assert one is not None
        other = rank if where == "0" else 0
        return f"({one.kind}) is on rank {where} alone: {one.words()}; rank {other} has none of that name"
    if (theirs.dtype, theirs.shape, theirs.bits) == (mine.dtype, mine.shape, mine.bits):
        return ""
    left, right = theirs.words(), mine.words()
    alike = ", which differ in their bits elsewhere" if left == right else ""
    return f"({mine.kind}) is {right} on rank {rank}, and {left} on rank 0{alike}"
