"""What collectives take of the card, and that nobody's values pose as those of a peer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pytest_memleak.errors import NotSimulated
from pytest_memleak.ranks.played import playing

pytestmark = pytest.mark.usefixtures("four_cards")
MIB = 1 << 20
MANY = 4 * MIB


def knows(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.memleak_card.knows(tensor))


def waited(work: Any) -> None:
    assert work.wait()
    assert work.is_completed()


def taken(run: Callable[[], object]) -> int:
    """Bytes over what there was."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("source", [0, 1])
def test_what_is_broadcast_is_known_to_its_source_alone(device: str, source: int) -> None:
    with playing(1, 4):
        sent = torch.arange(8, device=device)
        dist.broadcast(sent, src=source)
        assert knows(sent) == (source == 1)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_what_peers_send_is_unknown(device: str) -> None:
    def ones(count: int = 4) -> torch.Tensor:
        return torch.ones(count, device=device)

    with playing(2, 4):
        one, whole, parts = ones(), ones(16), [ones() for _ in range(4)]
        for collective in (
            lambda: dist.all_reduce(one),
            lambda: dist.all_gather_into_tensor(whole, ones()),
            lambda: dist.reduce_scatter_tensor(one, ones(16)),
            lambda: dist.all_gather(parts, ones()),
            lambda: dist.reduce_scatter(one, [ones() for _ in range(4)]),
            lambda: dist.all_to_all_single(whole, ones(16)),
            lambda: dist.all_to_all(parts, [ones() for _ in range(4)]),
            lambda: dist.scatter(one, src=0),
            lambda: dist.recv(one, src=0),
            lambda: waited(dist.irecv(one, src=0)),
            lambda: waited(dist.all_reduce(one, async_op=True)),
        ):
            received = (one, whole, *parts)
            for tensor in received:
                tensor.fill_(1)
            assert all(map(knows, received))
            collective()
            assert not all(map(knows, received))


def test_what_this_rank_sends_stays() -> None:
    with playing(2, 4):
        given = torch.ones(4, device="cuda")
        dist.send(given, dst=0)
        dist.reduce(given, dst=0)
        dist.gather(given, dst=0)
        assert given.tolist() == [1] * 4


def test_of_what_it_scatters_it_has_its_own_part() -> None:
    with playing(2, 4):
        part = torch.zeros(1, device="cuda")
        dist.scatter(part, [torch.full((1,), float(rank), device="cuda") for rank in range(4)], src=2)
        assert part.tolist() == [2]


def test_a_group_of_one_knows_all() -> None:
    with playing(0, 1):
        whole = torch.zeros(3, device="cuda")
        dist.all_gather_into_tensor(whole, torch.arange(3.0, device="cuda"))
        dist.all_reduce(whole)
        dist.broadcast(whole, src=0)
        assert whole.tolist() == [0, 1, 2]


def test_a_decision_by_what_was_received_is_found_out(four_cards: Any) -> None:
    with playing(1, 2):
        flag = torch.zeros(1, device="cuda")
        dist.broadcast(flag, src=0)
        assert four_cards.unknowns.doubt() is None
        bool(flag)
        assert "went by a value" in str(four_cards.unknowns.doubt())


def test_collectives_into_one_tensor_take_nothing() -> None:
    with playing(0, 4):
        part = torch.empty(MANY, device="cuda")
        whole = torch.empty(4 * MANY, device="cuda")
        for collective in (
            lambda: dist.all_gather_into_tensor(whole, part),
            lambda: dist.reduce_scatter_tensor(part, whole),
            lambda: dist.all_reduce(whole),
            lambda: dist.broadcast(whole, src=0),
        ):
            assert taken(collective) == 0


def test_collectives_of_lists_go_through_one_tensor() -> None:
    """NCCL's do, by torch's allocator, where all are of one size."""
    with playing(0, 4):
        part = torch.empty(MANY, device="cuda")
        alike = [torch.empty(MANY, device="cuda") for _ in range(4)]
        assert taken(lambda: dist.all_gather(alike, part)) == 4 * 4 * MANY
        assert taken(lambda: dist.reduce_scatter(part, alike)) == 4 * 4 * MANY
        assert taken(lambda: dist.all_gather([*alike[:3], torch.empty(MANY - 1, device="cuda")], part)) < 4 * 4 * MANY
        assert torch.cuda.memory_allocated() == 5 * 4 * MANY


def test_functional_collectives_and_their_gradients(four_cards: Any) -> None:
    from torch.distributed import _functional_collectives as functional

    with playing(1, 4):
        part = torch.ones(MANY, device="cuda")
        world: Any = dist.group.WORLD
        whole = functional.all_gather_tensor(part, 0, world)
        there: Any = functional.wait_tensor(whole)
        assert there.shape == (4 * MANY,)
        assert torch.cuda.memory_allocated() == 5 * 4 * MANY
        assert four_cards.unknowns.doubt() is None


def test_sizes_that_do_not_fit() -> None:
    with playing(0, 4):
        part, whole = torch.empty(4, device="cuda"), torch.empty(15, device="cuda")
        with pytest.raises(ValueError, match="world_size times input"):
            dist.all_gather_into_tensor(whole, part)
        with pytest.raises(ValueError, match="times world size"):
            dist.reduce_scatter_tensor(part, whole)
        with pytest.raises(RuntimeError, match="must be contiguous"):
            dist.all_reduce(torch.empty(4, 4, device="cuda")[:, 0])


def test_objects_of_peers_are_refused(four_cards: Any) -> None:
    with playing(1, 2):
        mine = [{"step": 3}]
        dist.broadcast_object_list(mine, src=1)
        dist.gather_object(3, None, dst=0)
        assert mine == [{"step": 3}]
        assert four_cards.unknowns.doubt() is None
        ways: tuple[Any, ...] = (
            lambda: dist.broadcast_object_list([None], src=0),
            lambda: dist.all_gather_object([None, None], 3),
            lambda: dist.gather_object(3, [None, None], dst=1),
            lambda: dist.scatter_object_list([None], None, src=0),
        )
        for receive in ways:
            four_cards.unknowns.reset()
            with pytest.raises(NotSimulated, match="Python objects"):
                receive()
            assert "Python objects" in str(four_cards.unknowns.doubt())


def test_objects_that_a_rank_scatters_and_those_of_one_alone() -> None:
    with playing(1, 2):
        got: list[Any] = [None]
        dist.scatter_object_list(got, ["others'", "mine"], src=1)
        assert got == ["mine"]
    with playing(0, 1):
        got = [None]
        dist.all_gather_object(got, "mine")
        assert got == ["mine"]


def test_torch_has_its_own_again() -> None:
    theirs = dist.broadcast_object_list
    with playing(1, 2):
        assert dist.broadcast_object_list is not theirs
    assert dist.broadcast_object_list is theirs
    distributed: Any = dist
    store = distributed.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        number = torch.ones(2)
        dist.all_reduce(number)
        assert knows(number)
    finally:
        dist.destroy_process_group()
