"""Several simulated cards: which of them takes what, and what they send each other."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation

comm: Any = importlib.import_module("torch.nn.parallel.comm")  # not typed by torch


@pytest.fixture(autouse=True)
def two(simulation: Simulation) -> Iterator[Simulation]:
    with simulation.other_cards(cards_of("2xt4")):
        yield simulation


def held() -> list[int]:
    return [torch.cuda.memory_allocated(index) for index in range(2)]


def test_each_has_its_own_memory_and_statistics() -> None:
    first = torch.empty(1024, dtype=torch.uint8, device="cuda")
    with torch.cuda.device(1):
        second = torch.empty(2048, dtype=torch.uint8, device="cuda")
    assert (first.get_device(), second.get_device(), held()) == (0, 1, [1024, 2048])
    moved = first.to("cuda:1")
    assert held() == [1024, 3072]
    del moved
    torch.cuda.reset_peak_memory_stats(0)
    assert [torch.cuda.max_memory_allocated(index) for index in range(2)] == [1024, 3072]
    torch.cuda.set_device(1)
    assert torch.cuda.max_memory_allocated() == 3072
    assert torch.accelerator.current_device_index() == 1
    with pytest.raises(torch.OutOfMemoryError, match=r"GPU 1 has a total capacity of 14\.74 GiB"):
        torch.empty(15 << 30, dtype=torch.uint8, device="cuda")


def test_values_and_gradients_go_from_card_to_card() -> None:
    start = torch.arange(3.0, device="cuda:0", requires_grad=True)
    end = (start * 2).to("cuda:1") * 3
    assert end.tolist() == [0, 6, 12]
    torch.autograd.backward(end.sum())
    assert start.grad is not None
    assert (start.grad.get_device(), start.grad.tolist()) == (0, [6, 6, 6])


@pytest.mark.parametrize(
    "operation",
    [torch.add, torch.mm, lambda a, b: torch.cat([a, b]), lambda a, b: a.index_select(0, b[0].long())],
)
def test_an_operation_is_on_one_card(operation: Any) -> None:
    with pytest.raises(RuntimeError, match=r"Expected all tensors to be on the same device.* cuda:0 and cuda:1!"):
        operation(torch.ones(2, 2, device="cuda:0"), torch.ones(2, 2, device="cuda:1"))


def test_lists_may_be_on_several() -> None:
    numbers = [torch.ones(2, device=f"cuda:{index}") for index in range(2)]
    torch._foreach_mul_(numbers, 3)
    assert [one.tolist() for one in numbers] == [[3, 3], [3, 3]]
    assert [one.get_device() for one in torch._foreach_add(numbers, 1)] == [0, 1]


def test_a_card_that_is_not_there() -> None:
    asks: list[Any] = [
        lambda: torch.ones(1, device="cuda:2"),
        lambda: torch.ones(1).cuda(3),
        lambda: torch.cuda.set_device(2),
    ]
    for ask in asks:
        with pytest.raises(RuntimeError, match="CUDA error: invalid device ordinal"):
            ask()
    assert torch.cuda.current_device() == 0


def test_more_than_any_card_has() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate more than 1EB memory"):
        torch.empty(1 << 61, dtype=torch.uint8, device="cuda")


def test_streams_are_torch_s_own() -> None:
    numbers = torch.arange(3, device="cuda:1")
    stream = torch.cuda.Stream(1)
    assert isinstance(stream, torch.Stream)
    assert stream.device == torch.device("cuda", 1)
    with torch.cuda.stream(stream):
        assert stream == torch.cuda.current_stream(1) != torch.cuda.current_stream(0)
        numbers.record_stream(stream)
    torch.cuda.current_stream(1).wait_stream(stream)
    assert stream.record_event().query()
    assert numbers.tolist() == [0, 1, 2]


def test_parts_are_scattered_and_gathered() -> None:
    numbers = torch.arange(6.0)
    parts = comm.scatter(numbers, (0, 1), dim=0)
    assert [(one.get_device(), one.tolist()) for one in parts] == [(0, [0, 1, 2]), (1, [3, 4, 5])]
    assert [one.numel() for one in comm.scatter(numbers.cuda(), (0, 1), chunk_sizes=(1, 5))] == [1, 5]
    assert torch.equal(comm.gather(parts, 0, 1), numbers.to("cuda:1"))
    assert comm.gather(parts, 0, "cpu").tolist() == numbers.tolist()
    assert comm.gather(parts, 0).get_device() == 0
    out = [torch.empty(3, device=f"cuda:{index}") for index in range(2)]
    comm.scatter(numbers, out=out)
    assert comm.gather(out, out=torch.empty(6)).tolist() == numbers.tolist()


def test_nobody_asks_for_what_is_not_known(two: Simulation) -> None:
    two.unknowns.reset()
    parts = [torch.empty(1024, device=f"cuda:{index}") for index in range(2)]
    found = comm.gather(parts, 0, 0)
    written = torch.ones(2048, device="cuda")
    comm.gather(parts, 0, out=written)
    assert (two.unknowns.doubt(), not two.unknowns.placeholders) == (None, True)
    for gathered in (found, written, comm.gather(parts, 0, "cpu")):
        two.unknowns.reset()
        bool(gathered[0] == 1)
        assert two.unknowns.doubt()


def test_many_are_sent_in_one_buffer_for_each_type() -> None:
    given = [torch.ones(100, device="cuda"), torch.arange(10, device="cuda"), torch.full((2, 2), 5.0, device="cuda")]
    before = held()
    own, sent = comm.broadcast_coalesced(given, (0, 1))
    assert all(one is two for one, two in zip(own, given, strict=True))
    assert [one.tolist() for one in sent] == [one.tolist() for one in given]
    # 104 floats together, and 10 whole numbers.
    assert [now - then for now, then in zip(held(), before, strict=True)] == [0, 512 + 512]
    sent[0].add_(1)
    assert sent[2]._version == 0
    assert [one.tolist() for one in comm.broadcast(given[1], (0, 1))] == [list(range(10))] * 2


def test_sums_of_all_cards(two: Simulation) -> None:
    parts = [torch.full((1024, 1024), float(index), device=f"cuda:{index}") for index in range(2)]
    small = [part[:3].clone().fill_(index + 1) for index, part in enumerate(parts)]
    assert comm.reduce_add(small, 1)[2].tolist() == [3.0] * 1024
    before = held()
    torch.cuda.reset_peak_memory_stats(0)
    found = comm.reduce_add(parts, 0)
    assert held() == [before[0] + parts[0].nbytes, before[1]]
    assert torch.cuda.max_memory_allocated(0) == before[0] + parts[0].nbytes  # nothing but the result
    two.unknowns.reset()
    bool(found[0, 0] == 1)
    assert two.unknowns.doubt()


def test_data_parallel_computes_as_one_card_does() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3).cuda()
    numbers = torch.arange(24.0).view(6, 4).cuda()
    layer(numbers).sum().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.clone()
    layer.zero_grad()
    parallel = torch.nn.DataParallel(layer)
    found = parallel(numbers)
    assert torch.allclose(found, layer(numbers))
    found.sum().backward()
    assert torch.allclose(layer.weight.grad, expected)


def test_threads_that_follow_each_other_share_a_workspace() -> None:
    parallel = torch.nn.DataParallel(torch.nn.Linear(4, 3).cuda())

    def step() -> list[int]:
        parallel(torch.ones(6, 4).cuda()).sum().backward()
        parallel.zero_grad()
        return held()

    step()
    assert step() == step()
