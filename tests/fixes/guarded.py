"""The guard on simulated cards, with transformers' own warm-up; run by test_warmup_guard.py in a process of its own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.card import SimulatedCard
from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.fixes.warmup_guard import FIX
from pytest_memleak.plan import Cap
from pytest_memleak.warming import spy_on

pytest_plugins = ["tests.cards.simulated.conftest"]

GIB = 2**30
modeling: Any = importlib.import_module("transformers.modeling_utils")
transformers: Any = importlib.import_module("transformers")


@pytest.fixture(autouse=True)
def cards(simulation: Simulation) -> Iterator[SimulatedCard]:
    with simulation.other_cards(cards_of("2xa100-80g")):
        yield SimulatedCard(simulation, named=True)


def model(layers: int = 32) -> Any:
    """With 32 layers 12.55 GiB in fp16."""
    config = transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=layers, intermediate_size=11008, vocab_size=32000, num_attention_heads=32
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).to(torch.float16)


def warm_up(made: Any, places: dict[str, Any]) -> None:
    third = (None,) if "hf_quantizer" in inspect.signature(modeling.caching_allocator_warmup).parameters else ()
    modeling.caching_allocator_warmup(made, places, *third)


def asked(cards: SimulatedCard, device: Any = "cuda:0", layers: int = 32, cap: Cap | None = None) -> dict[str, int]:
    made = model(layers)
    places = {name: device(name) if callable(device) else device for name, _ in made.named_parameters()}
    with spy_on(cards, cap) as spy:
        warm_up(made, places)
    return {ask.device: ask.bytes for ask in spy.asks if ask.bytes}


def test_a_cap_on_the_target_and_none_on_the_current_device(cards: SimulatedCard) -> None:
    torch.cuda.set_per_process_memory_fraction(0.1, 1)  # 8 GiB
    torch.cuda.set_device(0)
    with pytest.raises(torch.OutOfMemoryError):
        asked(cards, "cuda:1")
    with FIX.fixed():
        assert asked(cards, "cuda:1") == {}
        assert asked(cards, "cuda:0")["cuda:0"] > 12 * GIB


def test_little_is_free(cards: SimulatedCard) -> None:
    neighbour = torch.empty(73 * GIB, dtype=torch.uint8, device="cuda:0")
    with FIX.fixed():
        assert asked(cards) == {}
        assert set(asked(cards, layers=4)) == {"cuda:0"}
    del neighbour


def test_where_it_fits_of_several(cards: SimulatedCard) -> None:
    torch.cuda.set_per_process_memory_fraction(0.05, 0)
    with FIX.fixed():
        split = asked(cards, lambda name: "cuda:1" if "layers.1" in name else "cpu" if "embed" in name else "cuda:0")
    assert set(split) == {"cuda:1"}


def test_a_card_that_is_told_its_size(cards: SimulatedCard) -> None:
    """The process's limit is what makes it that big, and must not be taken off a second time."""
    for free, kept in ((None, True), (6 * GIB, False)):
        cap = Cap(24 * GIB, "a test", free=free)
        with cards.capped(cap), FIX.fixed():
            assert bool(asked(cards, cap=cap)) is kept
            torch.cuda.empty_cache()
            assert asked(cards, layers=4, cap=cap)


def test_a_card_of_less_than_is_left_free(cards: SimulatedCard) -> None:
    cap = Cap(GIB, "a test")
    with cards.capped(cap), FIX.fixed():
        assert asked(cards, layers=1, cap=cap) == {}


def test_the_guard_on_the_spied_function_and_the_spy_on_the_guarded_one(cards: SimulatedCard) -> None:
    torch.cuda.set_per_process_memory_fraction(0.1, 0)
    made = model()
    places = dict.fromkeys((name for name, _ in made.named_parameters()), "cuda:0")
    with spy_on(cards, None) as outside, FIX.fixed(), spy_on(cards, None) as inside:
        warm_up(made, places)
    assert outside.asks == inside.asks == []
    assert inside.warmups
    assert not outside.warmups


def test_the_bug_is_put_back_where_a_release_has_none(cards: SimulatedCard) -> None:
    cap = Cap(24 * GIB, "a test", free=6 * GIB)
    with cards.capped(cap):
        with FIX.bug(), pytest.raises(torch.OutOfMemoryError):
            asked(cards, cap=cap)
        with FIX.bug(), FIX.fixed():
            assert asked(cards, cap=cap) == {}
        if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 2):
            assert 0 < asked(cards, cap=cap)["cuda:0"] < 6 * GIB
