"""Which rank a process is told to be, what it is told by, and when it is refused."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.ranks.played import playing

TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_PORT")


@pytest.fixture(autouse=True)
def nobody_s_rank(four_cards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TOLD, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_a_rank_is_told_as_by_torchrun() -> None:
    with playing(5, 8, nnodes=2) as played:
        assert [os.environ[name] for name in TOLD[:6]] == ["5", "8", "1", "4", "1", "2"]
        assert (dist.get_rank(), dist.get_world_size()) == (5, 8)
        assert (played.world.local_rank, played.world.local_size) == (1, 4)
    assert not dist.is_initialized()


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "17")
    before = dict(os.environ)
    with pytest.raises(KeyError), playing(1, 2):
        os.environ["LOCAL_RANK"] = "3"  # whatever the program does to it
        raise KeyError
    assert dict(os.environ) == before
    assert not dist.is_initialized()


def test_one_rank_after_the_other() -> None:
    for rank in range(4):
        with playing(rank, 4):
            assert dist.get_rank() == rank
            mesh = init_device_mesh("cuda", (2, 2), mesh_dim_names=("replicate", "shard"))
            assert list(mesh.get_coordinate() or ()) == [rank // 2, rank % 2]
            assert dist.get_process_group_ranks(mesh["shard"].get_group()) == [rank // 2 * 2, rank // 2 * 2 + 1]
            dist.barrier()


def test_a_program_may_end_its_group() -> None:
    with playing(0, 2):
        dist.destroy_process_group()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("rank", "size", "nnodes", "words"),
    [(2, 2, 1, "one of 0 to 1"), (-1, 2, 1, "one of 0 to 1"), (0, 0, 1, "rank 0 of 0"), (0, 3, 2, "cannot be divided")],
)
def test_ranks_that_are_none(rank: int, size: int, nnodes: int, words: str) -> None:
    with pytest.raises(BadInput, match=words), playing(rank, size, nnodes):
        pytest.fail("was played")


def test_without_the_card(four_cards: Any) -> None:
    four_cards.off()
    with pytest.raises(Unavailable, match="--gpu-backend=simulated"), playing(0, 2):
        pytest.fail("was played")


def test_more_ranks_than_cards() -> None:
    with pytest.raises(Unavailable, match=r"5 ranks of a node .* 4 simulated cards.*simulated:5xh200"), playing(0, 5):
        pytest.fail("was played")


def test_a_rank_within_a_rank() -> None:
    with playing(1, 2):
        with pytest.raises(Unavailable, match=r"rank 0 of 4 cannot be played: .* rank 1 of 2 already"), playing(0, 4):
            pytest.fail("was played")
        assert os.environ["WORLD_SIZE"] == "2"
        assert dist.get_world_size() == 2
        dist.all_reduce(torch.ones(1))  # still without peers: with them it would wait for ever
