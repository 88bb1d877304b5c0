"""The default process group of a test on ranks: there before its fixtures, gone after them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from pytest_memleak.errors import MemleakError, Unavailable
from pytest_memleak.ranks.world import World, current

_BARRIER = "TORCH_DIST_INIT_BARRIER"
GLOO = "gloo"
NCCL = "cpu:gloo,cuda:nccl"
PLAYED = "played"
"""This process plays its rank alone, on a simulated card: the others are not there."""


class ProcessGroup:
    """A plugin in each process of a world."""

    def __init__(self, backend: str | None) -> None:
        self._backend = backend

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        if self._backend is not None:
            world = current()
            assert world is not None
            try:
                begin(self._backend, world)
            except MemleakError as error:
                pytest.fail(f"pytest-memleak: {error}", pytrace=False)

    def pytest_runtest_logfinish(self) -> None:
        if self._backend is not None:
            end()


def begin(backend: str, world: World) -> None:
    """Joins the others, as the environment says where they are."""
    import torch
    import torch.distributed

    if not torch.distributed.is_available():
        raise Unavailable("this torch was built without torch.distributed, which ranks need")
    if torch.distributed.is_initialized():
        return
    if backend == PLAYED:
        from pytest_memleak.ranks.played import playing

        machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
        _played.enter_context(playing(world.rank, world.size, machines))
        return
    if "nccl" in backend:
        if not (torch.cuda.is_available() and torch.distributed.is_nccl_available()):
            raise Unavailable(f'backend={backend!r} needs GPUs and a torch with NCCL: leave it out, or write "gloo"')
        torch.cuda.set_device(world.local_rank)
    with _all_of_them():
        torch.distributed.init_process_group(backend)


@contextlib.contextmanager
def _all_of_them() -> Iterator[None]:
    """Until all are connected: a test that fails at once would hang up on those that are still about to be.

    Torch waits if the environment says so, and looks there each time.
    """
    before = os.environ.get(_BARRIER)
    os.environ[_BARRIER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BARRIER]
        else:
            os.environ[_BARRIER] = before


_played = contextlib.ExitStack()


def end() -> None:
    import torch.distributed

    _played.close()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def store_of_launcher(world: World) -> Any:
    """Where the processes of a torchrun can leave word for each other, whatever becomes of their process groups."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", world.rank, world.size)))
    return store


def wait_for(store: Any, key: str, seconds: float) -> str | None:
    """What another rank has left under a name; None if it has not within that time."""
    try:
        store.wait([key], timedelta(seconds=seconds))
    except RuntimeError:  # torch's own DistStoreError is one
        return None
    return bytes(store.get(key)).decode()


@contextlib.contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """A rank that hangs says where, and ends its process: torchrun ends the others with it."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
