"""On the simulated card: what is estimated of a plan, and what the same plan takes when it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import pytest_memleak
from pytest_memleak.errors import BadInput
from pytest_memleak.planner.estimate import highest
from pytest_memleak.planner.levels import levels_of
from pytest_memleak.planner.optimizing import optimizer_cost
from pytest_memleak.planner.plan import Mode, Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.profiling import profile
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.states import layout_of
from pytest_memleak.upstream.checkpoints import make_checkpoint
from tests.planner.llamas import BLOCKS, adamw, adapted, blocks_of, llama, plans

SIZES = {"hidden_size": 256, "intermediate_size": 512}
OPTIMIZER = adamw(lr=1e-3)
CARD = torch.device("cuda:0")


def batch_on_card(rows: int = 4, tokens: int = 256) -> dict[str, Any]:
    ids = torch.randint(0, 200, (rows, tokens), device=CARD)
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def errors(model: Any, wanted: Mapping[str, Plan]) -> dict[str, float]:
    """By how much the estimate is over what was taken, as a share of that."""
    blocks, batch = blocks_of(model), batch_on_card()
    cost = optimizer_cost(OPTIMIZER, [weight for weight in model.parameters() if weight.requires_grad], CARD)
    layout = layout_of(model, blocks, cost)
    profiled = profile(model, blocks, ["alike"] * BLOCKS, batch, optimizer=cost)
    assert profiled.how == "predicted"
    found = {}
    for name, plan in wanted.items():
        with Training(model, blocks, layout, plan, OPTIMIZER) as training:
            for _ in range(2):  # the second has the optimizer's state from the start
                levels = levels_of(CARD)
                model(**batch).loss.backward()
                training.step()
                taken = levels.highest()
        found[name] = highest([profiled], layout, plan).peak / taken - 1
    return found


@pytest.mark.parametrize(
    ("adapters", "dtype"), [(False, torch.float32), (True, torch.bfloat16)], ids=["all weights", "adapters"]
)
def test_every_kind_of_plan(adapters: bool, dtype: torch.dtype) -> None:
    found: dict[str, float] = {}

    def run(card: object) -> None:
        model = llama(**SIZES).to(CARD, dtype)
        found.update(errors(adapted(model) if adapters else model, plans()))

    if adapters:
        pytest.importorskip("peft")
    pytest_memleak.predict(run, "24G")
    assert set(found) == set(plans())
    assert all(-0.005 < error < 0.02 for error in found.values()), found


def profiled_llama(card: object = None, **others: Any) -> tuple[Any, Profile]:
    model = llama(**SIZES | others).to(CARD)
    return model, profile(model, blocks_of(model), ["alike"] * BLOCKS, batch_on_card())


def test_a_profile_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    def run(card: object) -> None:
        model = llama(**SIZES, attention_dropout=0.1).to(CARD).eval()
        model.model.norm.train()
        blocks, batch = blocks_of(model), batch_on_card()
        before = torch.random.get_rng_state()
        profile(model, blocks, ["alike"] * BLOCKS, batch)
        assert torch.equal(before, torch.random.get_rng_state())
        assert not model.training
        assert model.model.norm.training
        assert all(weight.grad is None for weight in model.parameters())
        assert all("forward" not in vars(block) and not block._forward_hooks for block in blocks)

    pytest_memleak.predict(run, "24G")


def test_one_that_fails_leaves_nothing() -> None:
    def run(card: object) -> None:
        model = llama(**SIZES).to(CARD)
        blocks = blocks_of(model)
        with pytest.raises(ValueError, match="input_ids"):
            profile(model, blocks, ["alike"] * BLOCKS, {"labels": batch_on_card()["labels"]})
        assert all("forward" not in vars(block) and not block._forward_hooks for block in blocks)
        model(**batch_on_card()).loss.backward()
        with pytest.raises(BadInput, match="zero_grad"):
            profile(model, blocks, ["alike"] * BLOCKS, batch_on_card())

    pytest_memleak.predict(run, "24G")


def test_each_mode_saves_less() -> None:
    def run(card: object) -> None:
        _, found = profiled_llama()
        hidden = 4 * 256 * 256 * 4
        for costs in found.blocks[1:]:
            assert costs[Mode.NONE].forward.grown > 8 * hidden
            assert costs[Mode.CHECKPOINT].forward.grown == pytest.approx(hidden, rel=0.02)
            assert costs[Mode.OFFLOAD].forward.grown == pytest.approx(0, abs=hidden / 50)
            # All that was saved is gone on the way back.
            for cost in costs.values():
                assert cost.backward.grown == pytest.approx(-cost.forward.grown, abs=hidden / 4)

    pytest_memleak.predict(run, "24G")


def test_what_is_made_once_is_of_no_block() -> None:
    """Products with a bias take a workspace, and the thread of the way back makes its own when a block is computed
    again there for the first time. It would count for each block."""

    def run(card: object) -> None:
        model = llama(**SIZES, attention_bias=True).to(CARD)
        blocks, batch = blocks_of(model), batch_on_card()
        first, again = (profile(model, blocks, ["alike"] * BLOCKS, batch) for _ in range(2))
        assert first == again

    pytest_memleak.predict(run, "24G")


def test_seconds_go_by_what_is_computed() -> None:
    def run(card: object) -> None:
        _, found = profiled_llama()
        plain, again = found.blocks[2][Mode.NONE], found.blocks[2][Mode.CHECKPOINT]
        assert plain.backward.seconds == pytest.approx(2 * plain.forward.seconds, rel=0.2)
        assert plain.backward.seconds < again.backward.seconds < plain.backward.seconds + 1.01 * plain.forward.seconds
        assert found.after.seconds > 0

    pytest_memleak.predict(run, "24G")


def test_a_block_of_another_shape_is_measured_by_itself() -> None:
    def run(card: object) -> None:
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

        model = llama(**SIZES).to(CARD)
        config = type(model.config)(**model.config.to_dict() | {"intermediate_size": 4096})
        model.model.layers[2] = LlamaDecoderLayer(config, 2).to(CARD)
        shapes = ["wide" if number == 2 else "alike" for number in range(BLOCKS)]
        found = profile(model, blocks_of(model), shapes, batch_on_card())
        kept = [costs[Mode.NONE].forward.grown for costs in found.blocks]
        assert kept[2] > 2 * kept[1]
        assert kept[3] == kept[4] == kept[1]

    pytest_memleak.predict(run, "24G")


def test_adapters_on_four_bits_under_an_exact_embedding(tmp_path: Path) -> None:
    """The first block is given float32, and the others what blocks return."""
    pytest.importorskip("bitsandbytes")
    peft: Any = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
    make_checkpoint(llama(**sizes).config, tmp_path, sparse=True, tokenizer=False)
    found: dict[str, float] = {}

    def run(card: object) -> None:
        four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        model: Any = AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.bfloat16, quantization_config=four_bits, device_map={"": CARD}
        )
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        model.enable_input_require_grads()
        found.update(errors(adapted(model), plans()))

    pytest_memleak.predict(run, "24G")
    wrong = {name: round(error, 4) for name, error in found.items() if not -0.015 < error < 0.05}
    assert not wrong
