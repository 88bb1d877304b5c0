"""Other cards for a while, in the process that has one."""

from __future__ import annotations

import pytest
import torch

from pytest_memleak.cards.simulated.profiles import MOST_CARDS, cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.errors import Unavailable


def test_the_own_card_is_as_it_was(simulation: Simulation) -> None:
    mine = torch.arange(1000, device="cuda")
    before = torch.cuda.memory_stats()
    with simulation.other_cards(cards_of("2xt4")):
        assert torch.cuda.device_count() == 2
        assert torch.cuda.get_device_name(1) == "Tesla T4"
        assert torch.cuda.memory_allocated() == 0
        theirs = torch.ones(4, 4, device="cuda:1") @ torch.ones(4, 4, device="cuda:1")
        assert torch.cuda.memory_allocated(1) > theirs.nbytes
        assert theirs.sum().item() == 64.0
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(15 * 2**30, dtype=torch.uint8, device="cuda")
    assert torch.cuda.device_count() == 1
    assert torch.cuda.memory_stats() == before
    del theirs  # released while another card is there
    assert torch.cuda.memory_stats() == before
    assert mine.sum().item() == 499500


def test_each_card_has_addresses_of_its_own(simulation: Simulation) -> None:
    with simulation.other_cards(cards_of("3xt4")):
        made = [torch.full((4,), index, device=f"cuda:{index}") for index in range(3)]
        assert len({one.data_ptr() for one in made}) == 3
        assert [one.tolist() for one in made] == [[index] * 4 for index in range(3)]
        del made
        assert [torch.cuda.memory_allocated(index) for index in range(3)] == [0, 0, 0]


def test_it_is_off_again_if_it_was(simulation: Simulation) -> None:
    simulation.off()
    with simulation.other_cards(cards_of("rtx3090")):
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()


def test_what_was_unknown_before_is_not_forgotten(simulation: Simulation) -> None:
    simulation.unknowns.reset()
    torch.randn(1000, 1000, device="cuda").sum().item()
    (line,) = simulation.unknowns.placeholders
    with simulation.other_cards(cards_of("t4")):
        assert not simulation.unknowns.placeholders
        bool(torch.randn(1000, 1000, device="cuda").sum() > 0)
        assert simulation.unknowns.doubt()
    assert list(simulation.unknowns.placeholders) == [line]
    assert simulation.unknowns.doubt() is None


def test_places_are_used_again_when_nothing_is_alive_there(simulation: Simulation) -> None:
    kept = []
    for _ in range(MOST_CARDS):
        with simulation.other_cards(cards_of("t4")):
            kept.append(torch.arange(10, device="cuda"))
    with pytest.raises(Unavailable, match="tensors of earlier ones are alive"), simulation.other_cards(cards_of("t4")):
        pass
    assert torch.cuda.get_device_name() == "NVIDIA H200"
    kept.pop()
    with simulation.other_cards(cards_of("t4")):
        assert torch.arange(10, device="cuda").sum().item() == 45
