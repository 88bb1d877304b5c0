"""Streams of the simulated card: each has memory of its own, as on a card. The figures were read on an H200."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.cards.simulated.simulation import Simulation

MIB = 2**20
cuda: Any = torch.cuda  # its streams are not typed


def beside(card: Any) -> Any:
    side, kept = cuda.Stream(), []
    torch.empty(3 * MIB, device="cuda")
    with torch.cuda.stream(side):
        kept.append(torch.empty(3 * MIB, device="cuda"))
        numbers = torch.ones(2048, 2048, device="cuda")
        kept.append(numbers @ numbers)
    torch.cuda.current_stream().wait_stream(side)
    numbers = torch.ones(2048, 2048, device="cuda")
    kept.append(numbers @ numbers)
    del numbers
    return kept


def backward(card: Any) -> Any:
    side = cuda.Stream()
    weight = torch.empty(2048, 2048, device="cuda", requires_grad=True)
    for _ in range(2):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = (weight @ weight).relu()
        torch.cuda.current_stream().wait_stream(side)
        torch.autograd.backward((found * 2).sum())
    del found
    return weight


@pytest.mark.parametrize(
    ("program", "requested", "allocated", "reserved", "held", "cached"),
    [
        (beside, 130023424, 130023424, 159383552, 113246208, 159383552),
        (backward, 167772168, 167773184, 186646528, 100663296, 186646528),
    ],
)
def test_as_on_a_card(
    program: Callable[[Any], Any], requested: int, allocated: int, reserved: int, held: int, cached: int
) -> None:
    found = pytest_memleak.predict(program)
    assert (found.requested_peak, found.allocated_peak, found.reserved_peak) == (requested, allocated, reserved)
    assert (found.requested, found.allocated, found.reserved) == (held, held, cached)
    assert found.doubt is None


def test_one_at_a_time_and_back_again(simulation: Simulation) -> None:
    default, side = torch.cuda.default_stream(), cuda.Stream()
    assert torch.cuda.current_stream() == default != side
    with torch.cuda.stream(side):
        assert torch.cuda.current_stream() == side == torch.accelerator.current_stream()
        with torch.cuda.stream(default):
            assert torch.cuda.current_stream() == default
        assert torch.cuda.current_stream() == side
        pytest_memleak.predict(lambda card: _is_default(torch.cuda.current_stream()))
        assert torch.cuda.current_stream() == side
    assert torch.cuda.current_stream() == default
    assert cuda.ExternalStream(4096).cuda_stream == 4096
    assert side.query()
    side.record_event().synchronize()


def _is_default(stream: torch.Stream) -> None:
    assert stream == torch.cuda.default_stream()


def test_each_thread_has_its_own(simulation: Simulation) -> None:
    seen = []
    with torch.cuda.stream(cuda.Stream()):
        thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        thread.start()
        thread.join()
    assert seen == [torch.cuda.default_stream()]


def test_they_are_handed_out_in_turn(simulation: Simulation) -> None:
    made = [cuda.Stream() for _ in range(33)]
    urgent = [cuda.Stream(priority=-1) for _ in range(32)]
    assert made[0] == made[32]
    assert len({stream.cuda_stream for stream in made[:32] + urgent}) == 64


def test_memory_that_another_one_uses_is_a_doubt(simulation: Simulation) -> None:
    simulation.unknowns.reset()
    side = cuda.Stream()
    with torch.cuda.stream(side):
        numbers = torch.ones(4, device="cuda")
    numbers.record_stream(side)
    torch.ones(4, device="cuda").record_stream(torch.cuda.current_stream())
    assert simulation.unknowns.doubt() is None
    numbers.record_stream(torch.cuda.current_stream())
    assert "memory that another stream uses (record_stream) is not simulated" in str(simulation.unknowns.doubt())
    simulation.unknowns.reset()
