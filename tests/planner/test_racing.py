"""Plans that are run to see which is the fastest, with the CPU as card."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pytest_memleak.errors import BadInput, MemleakError
from pytest_memleak.planner import Planner
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.racing import Race
from pytest_memleak.planner.running import saved
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.search import NothingFits
from tests.planner.llamas import BLOCKS, adamw, batches, llama

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner.of(llama(), make_optimizer=adamw(lr=1e-3), rows=2, tokens=64)


@pytest.fixture(scope="module")
def text() -> dict[str, dict[str, Any]]:
    (one,) = batches(1, tokens=64)
    return {"text": one}


def tight(planner: Planner) -> int:
    """Not all of it can stay."""
    return planner.estimate(Plan(BLOCKS, 0)).peak - 1


def late(found: Callable[..., Any]) -> Callable[..., Any]:
    def waits(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return found(*args, **kwargs)

    return waits


def test_what_leaves_the_card_is_slow(planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved.SavedOnHost, "_keep", late(saved.SavedOnHost._keep))
    found = planner.race(tight(planner), text, margin=1.0)
    assert found.peak <= tight(planner)
    assert found.plan.n_swap == found.plan.n_offload == 0


def test_to_compute_again_is_slow(planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_memleak.planner.running.modes.checkpoint", late(checkpoint))
    found = planner.race(tight(planner), text, margin=1.0)
    assert found.peak <= tight(planner)
    assert found.plan.n_checkpoint == 0


def test_a_machine_that_is_slow_for_a_while_decides_nothing(
    planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plan's seconds come from a list: the one that is the fastest was not in the first heat."""
    seconds = {1: [1.2, 0.5, 0.9, 0.6, 0.6, 0.6], 2: [1.0, 0.55, 0.54, 0.53, 0.6, 0.6], 3: [1.4, 0.1, 0.1, 0.1]}
    numbers: dict[Plan, int] = {}
    ran: list[int] = []

    def fed(race: Race, training: Training, plan: Plan, batches: Any) -> float:
        number = numbers.setdefault(plan, len(numbers) + 1)
        ran.append(number)
        return seconds[number].pop(0) if number in seconds else 9.0

    monkeypatch.setattr(Race, "_heat", fed)
    told: list[str] = []
    found = planner.race(tight(planner), text, margin=1.0, tell=told.append)
    assert len(numbers) >= 3
    assert (numbers[found.plan], found.seconds, found.why_not_larger) == (1, 0.5, None)
    # Far behind: out after the first heat, also the one that would have been fast later.
    assert ran[len(numbers) :] == [2, 1, 1, 2, 2, 1, 1, 2, 2, 1]
    assert len(told) == len(ran)
    assert told[0] == f"heat 1 of 6: {next(iter(numbers))}: 1.200 s a step"


def test_between_the_two_that_are_ahead_there_may_be_a_better_one(
    planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds by a rule that no model knows: many blocks that do the same are slow, as where copies have to hide."""
    ran: list[Plan] = []

    def fed(race: Race, training: Training, plan: Plan, batches: Any) -> float:
        ran.append(plan)
        return 9.0 if plan.n_persist < BLOCKS else 1 + 0.01 * (plan.n_offload**2 + plan.n_checkpoint**2)

    monkeypatch.setattr(Race, "_heat", fed)
    capacity = planner.estimate(Plan(BLOCKS, 0, 0, BLOCKS)).peak
    found = planner.race(capacity, text, margin=1.0)
    asked_for = [plan for plan in dict.fromkeys(ran) if plan.n_offload and plan.n_checkpoint]
    assert found.plan in asked_for
    assert found.peak <= capacity
    # As many heats as anybody, but for those before it came.
    assert ran.count(found.plan) >= 2
    assert all(plan.n_offload == 0 or plan.n_checkpoint == 0 for plan in ran[:3])


def test_nothing_is_left_of_it(planner: Planner, text: Any) -> None:
    weights = [weight.detach().clone() for weight in planner.model.parameters()]
    planner.model.eval()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = planner.race(tight(planner), text, margin=1.0, forbid_activation_offload=True)
    assert torch.equal(torch.rand(3), expected)
    assert found.seconds > 0
    assert found.plan.n_swap == found.plan.n_offload == 0
    assert all(map(torch.equal, planner.model.parameters(), weights))
    assert all(weight.grad is None for weight in planner.model.parameters())
    assert not planner.model.training


def test_buffers_are_afterwards_as_they_were() -> None:
    model = llama()
    model.register_buffer("passes", torch.zeros(()))
    model.register_buffer("last", first := torch.full((2,), 7.0, dtype=torch.bfloat16), persistent=False)
    model.register_buffer("none", None)

    def count(module: Any, args: Any) -> None:
        module.passes += 1
        module.last = torch.ones(3)

    model.register_forward_pre_hook(count)
    planner = Planner.of(model, make_optimizer=adamw(lr=1e-3), rows=2, tokens=32)
    assert (model.passes, model.last.tolist()) == (0, [7, 7])
    planner.race(tight(planner), {"text": next(batches(1))}, margin=1.0, forbid_activation_offload=True)
    assert (model.passes, model.last.tolist()) == (0, [7, 7])
    assert model.last is first


def test_weights_that_one_plan_left_elsewhere_are_where_they_were_for_the_next(
    planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    enters, where = Training.__enter__, []
    model: Any = planner.model
    weights = model.get_input_embeddings()._parameters
    first = weights["weight"]
    assert first is next(planner.model.parameters())

    def leaves(training: Training) -> Training:
        where.append(training._device.type)
        weights["weight"] = first
        if len(where) > 1:
            return enters(training)
        weights["weight"] = torch.nn.Parameter(first.to("meta"))  # for the host, which is the card here
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Training, "__enter__", leaves)
    planner.race(tight(planner), text, margin=1.0, forbid_activation_offload=True)
    assert len(where) > 1
    assert set(where) == {"cpu"}


def test_a_plan_that_finds_no_room_is_out(planner: Planner, text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    enters = Training.__enter__

    def full(training: Training) -> Training:
        if training._plan.n_checkpoint:
            raise torch.OutOfMemoryError
        return enters(training)

    monkeypatch.setattr(Training, "__enter__", full)
    assert planner.race(tight(planner), text, margin=1.0).plan.n_checkpoint == 0

    def always_full(training: Training) -> Training:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Training, "__enter__", always_full)
    with pytest.raises(MemleakError, match="the card had no room for any of them"):
        planner.race(tight(planner), text, margin=1.0)


def test_less_is_left_free_than_for_a_plan_that_nobody_ran(planner: Planner, text: Any) -> None:
    smallest = min(planner.estimate(plan).peak for plan in (Plan(0, 1, 0, BLOCKS), Plan(0, 1, 0, 0, BLOCKS)))
    with pytest.raises(NothingFits):
        planner.search(int(1.08 * smallest), n_persist=0, n_buffer=1)
    assert planner.race(int(1.08 * smallest), text).peak <= 1.08 * smallest / 1.05


def test_bad_input(planner: Planner, text: Any) -> None:
    with pytest.raises(NothingFits):
        planner.race(1000, text)
    with pytest.raises(BadInput, match=r"batches: none given: .* profiled \(text\)"):
        planner.race(10**9, {})
    with pytest.raises(BadInput, match="batches: image: "):
        planner.race(10**9, {"image": text["text"]})
