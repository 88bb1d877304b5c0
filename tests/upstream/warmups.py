"""What the spy sees of warm-ups on two simulated cards; run by test_warmup.py in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.cards.simulated.card import SimulatedCard
from pytest_memleak.cards.simulated.profiles import cards_of
from pytest_memleak.cards.simulated.simulation import Simulation
from pytest_memleak.upstream.patches import Patch
from pytest_memleak.upstream.warmup import WarmupSpy
from pytest_memleak.warming import spy_on

pytest_plugins = ["tests.cards.simulated.conftest"]

GIB = 2**30
modeling: Any = importlib.import_module("transformers.modeling_utils")
transformers: Any = importlib.import_module("transformers")
old = pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="another rule")


@pytest.fixture(autouse=True)
def cards(simulation: Simulation) -> Iterator[SimulatedCard]:
    with simulation.other_cards(cards_of("2xa100-40g")):
        yield SimulatedCard(simulation, named=True)


@pytest.fixture
def spy(cards: SimulatedCard) -> Iterator[WarmupSpy]:
    with spy_on(cards, None) as spying:
        yield spying


def model(layers: int = 2) -> Any:
    config = transformers.LlamaConfig(
        hidden_size=4096, num_hidden_layers=layers, intermediate_size=11008, vocab_size=32000, num_attention_heads=32
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).to(torch.float16)


def warm_up(made: Any, **devices: str) -> None:
    """As a load calls it: each parameter by its name."""
    places = {
        name: next((device for part, device in devices.items() if part in name), devices.get("rest", "cpu"))
        for name, _ in made.named_parameters()
    }
    third = (None,) if "hf_quantizer" in inspect.signature(modeling.caching_allocator_warmup).parameters else ()
    modeling.caching_allocator_warmup(made, places, *third)


def bytes_of(made: Any) -> int:
    return sum(parameter.numel() * 2 for parameter in made.parameters())


def test_a_request_and_what_there_was(spy: WarmupSpy, cards: SimulatedCard) -> None:
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda:1")
    made, free = model(), torch.cuda.mem_get_info(1)[0]
    warm_up(made, rest="cuda:1")
    (ask,) = spy.asks
    assert ask.device == "cuda:1"
    # Some releases of 4 take the head for tied, and leave it out.
    assert ask.bytes in (bytes_of(made), bytes_of(made) - 32000 * 4096 * 2)
    assert ask.room is not None
    assert (ask.room.total, ask.room.cap, ask.room.allocated) == (cards.total, None, held.nbytes)
    assert ask.room.free == free
    assert ask.fits


def test_a_cap_that_nobody_is_told_of_is_seen(spy: WarmupSpy) -> None:
    made = model(20)
    total = torch.cuda.mem_get_info(1)[1]
    torch.cuda.set_per_process_memory_fraction(0.1, 1)
    torch.cuda.set_device(0)
    with pytest.raises(torch.OutOfMemoryError):
        warm_up(made, rest="cuda:1")
    (ask,) = spy.asks
    assert ask.room is not None
    assert ask.room.cap == ask.room.bytes == int(total * 0.1)
    assert ask.room.free > ask.bytes > ask.room.bytes
    assert "Tried to allocate" in ask.failed
    assert ask.fits is False


def test_each_device_of_the_map(spy: WarmupSpy) -> None:
    made = model()
    warm_up(made, embed_tokens="cuda:1", lm_head="disk", norm="cpu", rest="cuda:0")
    (warmup,) = spy.warmups
    assert list(warmup.rooms) == ["cuda:1", "cuda:0"]
    assert {ask.device: ask.bytes for ask in warmup.asks}["cuda:1"] == 32000 * 4096 * 2
    assert len(warmup.asks) == 2


def test_memory_that_is_reserved_and_not_used_is_free(spy: WarmupSpy) -> None:
    before = torch.cuda.mem_get_info(0)[0]
    del_me = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda:0")
    del del_me
    assert torch.cuda.mem_get_info(0)[0] == before - 4 * GIB
    warm_up(model(20), rest="cuda:0")
    assert [ask.room.free for ask in spy.asks if ask.room] == [before]


def without_third(model: Any, expanded_device_map: Any) -> None:
    ask_for(expanded_device_map)


def with_factor(model: Any, expanded_device_map: Any, factor: int = 2) -> None:
    ask_for(expanded_device_map)


def by_keyword(model: Any, expanded_device_map: Any, hf_quantizer: Any, *, later: int = 0) -> None:
    ask_for(expanded_device_map)


def ask_for(device_map: dict[str, Any]) -> None:
    for device in set(device_map.values()):
        torch.empty(500, dtype=torch.float16, device=device)


@pytest.mark.parametrize(
    ("function", "more", "named"),
    [(without_third, (), {}), (with_factor, (4,), {}), (by_keyword, (None,), {"later": 1})],
)
def test_any_signature(
    function: Callable[..., None],
    more: tuple[Any, ...],
    named: dict[str, Any],
    cards: SimulatedCard,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(modeling, "caching_allocator_warmup", function)
    with spy_on(cards, None) as spy:
        modeling.caching_allocator_warmup(model(1), {"a": "cuda:1"}, *more, **named)
        if not more:
            modeling.caching_allocator_warmup(model=model(1), expanded_device_map={"a": "cuda:1"})
    assert {(ask.device, ask.bytes) for ask in spy.asks} == {("cuda:1", 1000)}
    assert modeling.caching_allocator_warmup is function


@old
def test_less_than_nothing(simulation: Simulation, cards: SimulatedCard) -> None:
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 2):
        pytest.skip("this release does not go below zero")
    from pytest_memleak.plan import Cap

    cap = Cap(GIB, "a test")
    with cards.capped(cap), spy_on(cards, cap) as spy, pytest.raises(RuntimeError, match="negative dimension"):
        warm_up(model(), rest="cuda:0")
    (ask,) = spy.asks
    assert -GIB < ask.bytes < 0
    assert ask.fits is False
    assert ask.room is not None
    assert ask.room.total == ask.room.free == GIB


def test_what_does_not_warm_up_is_not_asked_for(spy: WarmupSpy) -> None:
    torch.empty(GIB, dtype=torch.uint8, device="cuda:0")
    assert not spy.loads
    warm_up(model(1), rest="cpu")
    (warmup,) = spy.warmups
    assert not warmup.rooms
    assert not warmup.asks


@pytest.fixture
def folder(tmp_path: Path) -> str:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=172, num_hidden_layers=1, num_attention_heads=4, vocab_size=1000
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    return str(tmp_path)


def test_loads_with_and_without_a_warm_up(spy: WarmupSpy, folder: str) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cuda:1"})
    plain, mapped = spy.loads
    assert plain.reached
    assert mapped.reached
    assert not plain.warmups
    assert [list(warmup.rooms) for warmup in mapped.warmups] == [["cuda:1"]]
    assert "warmups.py:" in mapped.place


def test_a_load_that_dies_before_its_weights(spy: WarmupSpy) -> None:
    with pytest.raises((OSError, ValueError)):
        transformers.LlamaForCausalLM.from_pretrained("/nowhere/at/all", local_files_only=True)
    assert [load.reached for load in spy.loads] in ([], [False])


def test_a_load_that_dies_on_its_way_to_a_warm_up(cards: SimulatedCard, folder: str) -> None:
    def dies(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("no room")

    with Patch(modeling.PreTrainedModel, "_load_pretrained_model", lambda found: dies), spy_on(cards, None) as spy:
        with pytest.raises(torch.OutOfMemoryError):
            transformers.LlamaForCausalLM.from_pretrained(folder, device_map={"": "cuda:0"})
        (load,) = spy.loads
    assert not load.reached  # and nothing is known of what it would have asked for
    assert not load.warmups


def test_a_pause_hides_loads(spy: WarmupSpy, folder: str) -> None:
    spy.pause()
    transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cuda:0"})
    spy.resume()
    assert (spy.loads, spy.elsewhere) == ([], 1)
    transformers.AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cuda:0"})
    assert len(spy.warmups) == 1


def test_a_pause_hides_warm_ups(cards: SimulatedCard) -> None:
    entered = []

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        entered.append(True)
        yield

    with spy_on(cards, None, around) as spy:
        spy.pause()
        warm_up(model(1), rest="cuda:0")
        assert (spy.loads, entered) == ([], [])
        spy.resume()
        warm_up(model(1), rest="cuda:0")
        assert (len(spy.warmups), entered) == (1, [True])


def test_what_a_load_loads_is_a_part_of_it(cards: SimulatedCard, folder: str) -> None:
    def loads_another(found: Any) -> Any:
        def _load_pretrained_model(*args: Any, **kwargs: Any) -> Any:
            if not inner:
                inner.append(True)
                transformers.LlamaForCausalLM.from_pretrained(folder, device_map={"": "cuda:1"})
            return found(*args, **kwargs)

        return _load_pretrained_model

    inner: list[bool] = []
    with Patch(modeling.PreTrainedModel, "_load_pretrained_model", loads_another), spy_on(cards, None) as spy:
        transformers.LlamaForCausalLM.from_pretrained(folder, device_map={"": "cuda:0"})
    (load,) = spy.loads
    assert [list(warmup.rooms) for warmup in load.warmups] == [["cuda:1"], ["cuda:0"]]


def test_two_spies_see_the_same_and_leave_nothing_behind(cards: SimulatedCard) -> None:
    before = modeling.caching_allocator_warmup, vars(transformers.PreTrainedModel)["from_pretrained"]
    with spy_on(cards, None) as outer, spy_on(cards, None) as inner:
        warm_up(model(1), rest="cuda:0")
    assert outer.asks == inner.asks
    assert len(outer.asks) == 1
    assert (modeling.caching_allocator_warmup, vars(transformers.PreTrainedModel)["from_pretrained"]) == before


def test_a_release_without_it(cards: SimulatedCard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(modeling, "caching_allocator_warmup")
    with spy_on(cards, None) as spy:
        assert "has no caching_allocator_warmup" in spy.missing
