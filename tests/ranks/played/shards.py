"""FSDP2 and DTensor on a rank that is played: how large its shares are, and what the card holds at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from pytest_memleak.ranks.played import playing

pytestmark = pytest.mark.usefixtures("four_cards")
BLOCK = 512


def rounded(bytes_: int) -> int:
    return -(-bytes_ // BLOCK) * BLOCK


@pytest.mark.parametrize(("rank", "rows"), [(0, 3), (1, 3), (2, 3), (3, 1)])
def test_parameters_are_parted_with_a_remainder(rank: int, rows: int) -> None:
    with playing(rank, 4):
        mesh = init_device_mesh("cuda", (4,))
        layer = torch.nn.Linear(2000, 10, bias=False, device="cuda")
        fully_shard(layer, mesh=mesh)
        weight = layer.weight
        assert isinstance(weight, DTensor)
        assert (weight.shape, weight.to_local().shape) == ((10, 2000), (rows, 2000))
        # FSDP2 keeps what it pads: each rank has as many rows as the largest share.
        assert torch.cuda.memory_allocated() == rounded(4 * 3 * 2000)


def test_a_layer_is_whole_while_it_runs() -> None:
    wide, elements = 1024, 1024 * 1024
    with playing(1, 4):
        mesh = init_device_mesh("cuda", (4,))
        layers = torch.nn.Sequential(*(torch.nn.Linear(wide, wide, bias=False, device="meta") for _ in range(4)))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(layers, mesh=mesh)
        layers.to_empty(device="cuda")
        assert torch.cuda.memory_allocated() == 4 * 4 * elements // 4
        assert isinstance(layers, FSDPModule)
        given = torch.zeros(1, wide, device="cuda")
        given @ torch.zeros(wide, 1, device="cuda")  # which takes the products' workspace, once
        shares = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            layers(given)
        held = torch.cuda.max_memory_allocated() - shares
        # One layer and the next one, which is gathered meanwhile: not all of them, and no less than one.
        assert 4 * elements < held < 4 * 4 * elements


def test_a_step_leaves_gradients_of_the_shares_alone() -> None:
    wide = 1024
    with playing(3, 4):
        mesh = init_device_mesh("cuda", (4,))
        layer = torch.nn.Linear(wide, wide, bias=False, device="cuda")
        fully_shard(layer, mesh=mesh)
        layer(torch.zeros(1, wide, device="cuda")).sum().backward()
        gradient: Any = layer.weight.grad
        assert gradient.to_local().shape == (wide // 4, wide)
        optimizer = torch.optim.AdamW(layer.parameters())
        before = torch.cuda.memory_allocated()
        optimizer.step()
        # Two moments of a share, and the count of the steps, which is the CPU's.
        assert torch.cuda.memory_allocated() - before == 2 * 4 * wide * wide // 4


@pytest.mark.parametrize("rank", [0, 2])
def test_what_is_distributed(rank: int) -> None:
    with playing(rank, 4):
        mesh = init_device_mesh("cuda", (4,))
        whole = torch.zeros(8, 4, device="cuda")
        sharded = distribute_tensor(whole, mesh, [Shard(0)])
        assert sharded.to_local().shape == (2, 4)
        assert sharded.full_tensor().shape == (8, 4)
        copies = distribute_tensor(whole, mesh, [Replicate()])
        assert bool(torch.ops.memleak_card.knows(copies.to_local())) == (rank == 0)
