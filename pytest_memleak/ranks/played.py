"""A rank that is played: this process takes the place of rank k of n on the simulated card, without its peers.

Memory goes by sizes, and sizes go by rank and world: so each rank can be predicted by itself, one after the other, and
a world of eight cards fits on two cores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.distributed as dist

from pytest_memleak.cards.simulated.process import in_force
from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.ranks import host
from pytest_memleak.ranks.world import World
from pytest_memleak.wording import plural


@dataclass(frozen=True)
class Played:
    """The rank that this process is, and its account of the host's memory."""

    world: World
    host: host.HostAccount


@contextlib.contextmanager
def playing(rank: int, size: int, nnodes: int = 1) -> Iterator[Played]:
    """Until the end this process is that rank. The simulated card has to be on.

    The environment is as torchrun sets it, and there is a default process group for the CPU and the card. `Unavailable`
    says why that cannot be.
    """
    world = _world(rank, size, nnodes)
    simulation = in_force()
    if simulation is None:
        raise Unavailable(
            f"{world} can be played on a simulated card only, and none is on: run pytest with --gpu-backend=simulated, "
            "or play it inside of pytest_memleak.predict"
        )
    if not dist.is_available():
        raise Unavailable("this torch is built without torch.distributed, so there are no ranks to be played")
    if dist.is_initialized():
        raise Unavailable(
            f"{world} cannot be played: this process is rank {dist.get_rank()} of {dist.get_world_size()} already, of "
            f"a process group by {dist.get_backend()}; end that first (torch.distributed.destroy_process_group)"
        )
    if (cards := len(simulation.cards)) < world.local_size:
        raise Unavailable(
            f"{plural(world.local_size, 'rank')} of a node cannot be played on {plural(cards, 'simulated card')}: each "
            f"has its own, for instance by --gpu-backend=simulated:{world.local_size}xh200"
        )
    from pytest_memleak.ranks import collectives, fake_group

    with (
        _environment(_variables(world, nnodes)),
        host.accounted() as account,
        collectives.without_peers(),
        fake_group.objects_refused(simulation.unknowns),
        fake_group.joined(rank, size),
    ):
        yield Played(world, account)


def _world(rank: int, size: int, nnodes: int) -> World:
    if size < 1 or nnodes < 1 or not 0 <= rank < size:
        raise BadInput(
            f"rank {rank} of {size} on {nnodes} nodes: a rank is one of 0 to {size - 1}, and nodes begin at 1"
        )
    if size % nnodes:
        raise BadInput(
            f"{size} ranks on {nnodes} nodes: each node has as many as any other, and {size} cannot be divided so"
        )
    local = size // nnodes
    return World(rank, size, rank % local, local)


def _variables(world: World, nnodes: int) -> dict[str, str]:
    return {
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
        "GROUP_RANK": str(world.rank // world.local_size),
        "GROUP_WORLD_SIZE": str(nnodes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",  # nobody listens there, and nobody is called
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Afterwards each is what it was, whatever the program set meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
