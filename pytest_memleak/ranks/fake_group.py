"""torch's fake process group, and what of torch.distributed is private to it. Checked on torch 2.6 and 2.13.

The group gives a program ranks, sizes, subgroups and device meshes. What its collectives do is in collectives.py.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from pytest_memleak.cards.simulated.unknowns import Unknowns
from pytest_memleak.upstream.patches import Patch

OBJECTS = "what other ranks send as Python objects ({}) is not simulated"
Function = Callable[..., Any]


@contextlib.contextmanager
def joined(rank: int, size: int) -> Iterator[None]:
    """Until the end there is a default group, for the CPU and for the card."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # which registers the backend, too

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield
    finally:
        if dist.is_initialized():  # the program may have ended it, as it should
            dist.destroy_process_group()


@contextlib.contextmanager
def objects_refused(unknowns: Unknowns) -> Iterator[None]:
    """Until the end nobody is given an object that a peer would have sent: a guess would be believed."""
    with contextlib.ExitStack() as undo:
        for name, from_whom in _RECEIVING.items():
            for module in (distributed_c10d, dist):
                undo.enter_context(Patch(module, name, functools.partial(_refusing, name, from_whom, unknowns)))
        yield


def _refusing(name: str, is_mine: Callable[..., bool | None], unknowns: Unknowns, found: Function) -> Function:
    @functools.wraps(found)
    def collective(*args: Any, **kwargs: Any) -> Any:
        mine = is_mine(*args, **kwargs)
        if mine is None:
            return None  # this rank sends, and is given nothing
        if not mine:
            raise unknowns.refuse(OBJECTS.format(name))
        return found(*args, **kwargs)

    return collective


def _alone(group: Any) -> bool:
    return dist.get_world_size(group) == 1


def _by_all(object_list: Any, obj: Any, group: Any = None) -> bool:
    return _alone(group)


def _by_all_to_one(obj: Any, object_gather_list: Any = None, dst: Any = None, group: Any = None, **named: Any) -> Any:
    if _alone(group):
        return True
    return False if _is_me(dst, group, named.get("group_dst")) else None


def _by_one(
    object_list: Any, src: Any = None, group: Any = None, device: Any = None, group_src: Any = None, **named: Any
) -> bool:
    return _is_me(src, group, group_src)


def _to_each(output: Any, objects: Any = None, src: Any = None, group: Any = None, group_src: Any = None) -> Any:
    if not _is_me(src, group, group_src):
        return False
    if objects is not None:
        output[0] = objects[dist.get_rank(group)]
    return None


def _from_peer(*args: Any, **kwargs: Any) -> bool:
    return False


def _is_me(rank: int | None, group: Any, in_group: int | None) -> bool:
    """Whether the rank that a program names is this one; without a name it is the first of the group."""
    if rank is None:
        return dist.get_rank(group) == (in_group or 0)
    return dist.get_rank() == rank


_RECEIVING: dict[str, Callable[..., bool | None]] = {
    "all_gather_object": _by_all,
    "gather_object": _by_all_to_one,
    "broadcast_object_list": _by_one,
    "scatter_object_list": _to_each,
    "recv_object_list": _from_peer,
}
"""Whether a call is answered as torch does: all that there is, is this rank's. None: it was answered here."""
