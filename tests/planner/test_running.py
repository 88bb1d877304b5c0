"""A model trained by a plan is trained as without one: to the bit, on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_memleak.errors import BadInput
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.running.states import LeftOnHost
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.running.transfers import Transfers
from pytest_memleak.planner.states import layout_of
from pytest_memleak.prediction import predict
from tests.planner.llamas import BLOCKS, adamw, adapted, batches, blocks_of, llama, plans

pytest.importorskip("transformers")

STEPS = 20
OPTIMIZER = adamw(lr=1e-2)


@pytest.fixture
def one_thread() -> Any:
    """Sums of several threads come in any order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(build: Callable[[], Any], plan: Plan | None, chunk: int | None = None) -> tuple[list[float], list[Any]]:
    """Losses, and the weights at the end."""
    model = build().train()
    torch.manual_seed(2)
    losses = []
    if plan is None:
        optimizer = OPTIMIZER(weight for weight in model.parameters() if weight.requires_grad)
        for batch in batches(STEPS):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    else:
        blocks = blocks_of(model)
        layout = layout_of(model, blocks, chunk=chunk)
        with Training(model, blocks, layout, plan, OPTIMIZER) as training:
            for batch in batches(STEPS):
                loss = model(**batch).loss
                loss.backward()
                training.step()
                losses.append(loss.item())
    return losses, [weight.detach().clone() for weight in model.parameters()]


def the_same(one: tuple[list[float], list[Any]], other: tuple[list[float], list[Any]]) -> bool:
    return one[0] == other[0] and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


@pytest.mark.usefixtures("one_thread")
def test_all_weights() -> None:
    expected = trained(llama, None)
    assert expected[0][-1] < expected[0][0]
    for name, plan in plans().items():
        assert the_same(trained(llama, plan), expected), name


@pytest.mark.usefixtures("one_thread")
def test_dropout_falls_on_the_same_numbers() -> None:
    """A checkpointed block runs twice, and the second time as the first."""

    def build() -> Any:
        return llama(attention_dropout=0.2)

    expected = trained(build, None)
    for name in ("checkpointed", "everything"):
        assert the_same(trained(build, plans()[name]), expected), name


@pytest.mark.usefixtures("one_thread")
def test_adapters() -> None:
    pytest.importorskip("peft")

    def build() -> Any:
        return adapted(llama())

    expected = trained(build, None)
    for name in ("one buffer", "streamed and checkpointed", "swapped", "everything"):
        assert the_same(trained(build, plans()[name]), expected), name


@pytest.mark.usefixtures("one_thread")
def test_weights_whose_memory_cannot_be_emptied() -> None:
    """Those of a mapped file, as a load leaves them on the CPU."""
    pytest.importorskip("numpy")

    def build() -> Any:
        model = llama()
        for weight in model.parameters():
            weight.data = torch.from_numpy(weight.detach().numpy().copy())
        return model

    assert not next(build().parameters()).untyped_storage().resizable()
    assert the_same(trained(build, plans()["one buffer"]), trained(llama, None))


@pytest.mark.usefixtures("one_thread")
def test_four_bit_weights_under_adapters() -> None:
    """What they were packed with stays where it is."""
    bitsandbytes: Any = pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")

    def build() -> Any:
        model = llama()
        for block in blocks_of(model):
            for name, plain in [(name, one) for name, one in block.named_modules() if isinstance(one, nn.Linear)]:
                packed = bitsandbytes.nn.Linear4bit(
                    plain.in_features, plain.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                packed.weight = bitsandbytes.nn.Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
                block.set_submodule(name, packed.to("cpu"))
        return adapted(model)

    assert "torch.uint8" in {str(weight.dtype) for weight in build().parameters()}
    expected = trained(build, None)
    for name in ("one buffer", "streamed and checkpointed"):
        assert the_same(trained(build, plans()[name]), expected), name


@pytest.mark.usefixtures("one_thread")
def test_chunks_that_are_parts_of_blocks() -> None:
    model = llama()
    assert len(layout_of(model, blocks_of(model), chunk=40_000).chunks) > BLOCKS
    layout = layout_of(model, blocks_of(model), chunk=40_000)
    least = layout.fewest_buffers(0)
    expected = trained(llama, None)
    for plan in (Plan(0, least), Plan(3, least + 1, n_checkpoint=3), Plan(0, 2 * least, n_swap=2)):
        assert the_same(trained(llama, plan, chunk=40_000), expected), plan


@pytest.mark.usefixtures("one_thread")
def test_gradients_of_several_passes_add_up() -> None:
    found = []
    for plan in (None, Plan(0, 2, n_checkpoint=3)):
        model = llama().train()
        blocks = blocks_of(model)
        if plan is None:
            optimizer = OPTIMIZER(model.parameters())
            for batch in batches(2):
                model(**batch).loss.backward()
            optimizer.step()
        else:
            with Training(model, blocks, layout_of(model, blocks), plan, OPTIMIZER) as training:
                for batch in batches(2):
                    model(**batch).loss.backward()
                training.step()
        found.append([weight.detach().clone() for weight in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_streamed_is_not_on_the_card() -> None:
    model = llama().train()
    blocks = blocks_of(model)
    held: list[int] = []
    with Training(model, blocks, layout_of(model, blocks), Plan(2, 1), OPTIMIZER):
        for block in blocks:
            block.register_forward_hook(lambda *_: held.append(sum(map(is_there, blocks))))
        (batch,) = batches(1)
        model(**batch).loss.backward()
        assert [is_there(block) for block in blocks] == [True, True, False, False, False, False]
        assert all(weight.grad is None for block in blocks[2:] for weight in block.parameters())
    assert held == [2, 3, 3, 3, 3, 3]  # the third comes while the second runs
    assert all(map(is_there, blocks))


def test_looking_at_what_it_says_meanwhile_changes_nothing() -> None:
    """A pass without gradients between two steps, as for an evaluation."""
    model = llama().train()
    blocks = blocks_of(model)
    (batch,) = batches(1)
    expected = model(**batch).loss.item()
    with Training(model, blocks, layout_of(model, blocks), Plan(0, 2, n_swap=2, n_checkpoint=2), OPTIMIZER):
        with torch.no_grad():
            assert model(**batch).loss.item() == expected
        assert model(**batch).loss.item() == expected
        assert model(**batch).loss.item() == expected  # nobody went back through the one before


@pytest.mark.parametrize("plan", plans().values(), ids=plans())
def test_afterwards_the_model_is_as_before(plan: Plan) -> None:
    model = llama().train()
    blocks = blocks_of(model)
    before = [weight.detach().clone() for weight in model.parameters()]
    (batch,) = batches(1)
    with pytest.raises(ZeroDivisionError), Training(model, blocks, layout_of(model, blocks), plan, OPTIMIZER):
        model(**batch).loss.backward()
        _ = 1 / 0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    for block in blocks:
        assert "forward" not in vars(block)
        assert not block._forward_hooks
        assert not block._forward_pre_hooks
        assert not any(weight._post_accumulate_grad_hooks for weight in block.parameters())


def test_a_host_that_is_full_costs_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama().train()
    blocks = blocks_of(model)
    before = [weight.detach().clone() for weight in model.parameters()]
    real, taken = Transfers.host_memory, iter(range(20))

    def until_full(transfers: Transfers, bytes_: int) -> torch.Tensor:
        if next(taken, None) is None:
            raise MemoryError
        return real(transfers, bytes_)

    monkeypatch.setattr(Transfers, "host_memory", until_full)
    with pytest.raises(MemoryError), Training(model, blocks, layout_of(model, blocks), Plan(0, 1), OPTIMIZER):
        pass
    assert all(map(torch.equal, model.parameters(), before))
    assert not any(weight._post_accumulate_grad_hooks for block in blocks for weight in block.parameters())


def test_two_plans_at_a_time_are_refused() -> None:
    model = llama().train()
    blocks = blocks_of(model)
    before = [weight.detach().clone() for weight in model.parameters()]
    with Training(model, blocks, layout_of(model, blocks), Plan(2, 1)):
        with pytest.raises(BadInput, match=r"^model\.layers\.2\.self_attn\.q_proj\.weight has no memory"):
            Training(model, blocks, layout_of(model, blocks), Plan(0, 1)).__enter__()
    assert all(map(torch.equal, model.parameters(), before))


def test_weights_that_find_the_card_full_are_the_hosts() -> None:
    """Out of memory within a step: what it took is there until its error is let go of."""

    def program(card: Any) -> Any:
        model = llama(hidden_size=256).to(card.device)
        blocks = blocks_of(model)
        taken: list[torch.Tensor] = []
        streamed = Training(model, blocks, layout_of(model, blocks), Plan(2, 1), OPTIMIZER)
        with pytest.warns(LeftOnHost, match="weights .* are on the CPU now"), pytest.raises(torch.OutOfMemoryError):
            fill_up(card.device, taken, streamed)
        on_host = [weight for weight in model.parameters() if weight.device.type == "cpu"]
        assert on_host
        assert all(map(is_there, blocks))
        taken.clear()
        with Training(model, blocks, layout_of(model, blocks), Plan(2, 1), OPTIMIZER, torch.device(card.device)):
            pass
        assert all(weight.device.type == "cuda" for weight in model.parameters())
        return model

    assert predict(program, "2G").doubt is None


def fill_up(device: str, taken: list[torch.Tensor], training: Training) -> None:
    with training:
        for size in (1 << 26, 1 << 18):
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    taken.append(torch.empty(size, dtype=torch.uint8, device=device))
        torch.empty(1 << 26, device=device)


def is_there(block: nn.Module) -> bool:
    return all(weight.untyped_storage().nbytes() for weight in block.parameters())
