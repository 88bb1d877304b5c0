"""From a model to a plan that runs and holds, with the CPU as card."""

from __future__ import annotations

import contextlib
import gc
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.meters import shared
from pytest_memleak.planner import Plan, Planner, planning
from pytest_memleak.planner.levels import levels_of
from pytest_memleak.planner.optimizing import trained_beside
from pytest_memleak.planner.pace import Links
from pytest_memleak.planner.planning import HEADROOM, FilledIn, Guessed
from pytest_memleak.planner.profiling import profile
from pytest_memleak.planner.search import NothingFits
from tests.planner.llamas import adamw, batches, llama
from tests.planner.small_models import LAYERS, Plain, build, plain_blocks

pytest.importorskip("transformers")

OPTIMIZER = adamw(lr=1e-3)


def of(model: Any, **sizes: Any) -> Planner:
    """Copies take no time to speak of: within the host's memory it would depend on who else copies."""
    sizes = {"tokens": 48, "make_optimizer": OPTIMIZER, **sizes}
    return replace(Planner.of(model, **sizes), links=Links(1e15, 1e15, 1e15))


@pytest.fixture(scope="module")
def of_text() -> Planner:
    return of(llama(), rows=2)


def test_garbage_does_not_count() -> None:
    """It may be gone before the first step of training."""

    def base() -> int:
        return of(llama(), rows=2).profiles[0].base

    without = base()
    gc.disable()
    try:
        holder: list[Any] = [torch.ones(1 << 20)]
        holder.append(holder)
        del holder
        assert base() == without
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def of_images() -> Planner:
    """Profiled without a warning: a batch of each kind could be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Guessed)
        return of(build("qwen2_5_vl"), tokens=80, pixels=112)


def smallest(planner: Planner) -> Any:
    with pytest.raises(NothingFits) as error:
        planner.search(1 + planner.headroom, margin=1.0)
    return error.value.smallest


def test_a_model_of_text(of_text: Planner) -> None:
    assert [profile.kind for profile in of_text.profiles] == ["text"]
    assert of_text.layout.blocks == len(of_text.anatomy.blocks) == len(of_text.layout.chunks) == 6
    assert of_text.headroom == 0


def test_a_model_of_images_has_a_profile_of_each_kind(of_images: Planner) -> None:
    assert [profile.kind for profile in of_images.profiles] == ["text", "image", "video"]
    assert of_images.layout.blocks == LAYERS
    assert of_images.headroom == 0
    text, image, _ = of_images.profiles
    assert image.before.peak > 2 * text.before.peak
    assert image.base == pytest.approx(text.base, abs=512)  # it keeps a number for each row of the last image


def test_estimates_are_those_of_the_kind_that_takes_most(of_images: Planner) -> None:
    plan = Plan(LAYERS, 0, n_checkpoint=LAYERS)
    alone = [replace(of_images, profiles=(profile,)).estimate(plan).peak for profile in of_images.profiles]
    assert of_images.estimate(plan).peak == max(alone) > min(alone)
    seconds = [replace(of_images, profiles=(profile,)).seconds(plan) for profile in of_images.profiles]
    assert of_images.seconds(plan) == pytest.approx(sum(seconds) / len(seconds))


def test_batches_of_ones_own_stand_in_for_those_that_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    def look(model: Any, blocks: Any, shapes: Any, batch: Any, kind: str, cost: Any) -> Any:
        seen.append((kind, batch))
        return real(model, blocks, shapes, batch, kind, cost)

    real = profile
    monkeypatch.setattr(planning, "profile", look)
    model = build("gemma3")
    own = {"input_ids": torch.ones(3, 70, dtype=torch.long), "labels": torch.ones(3, 70, dtype=torch.long)}
    of(model, batches={"text": own}, rows=2)
    (_, text), (kind, image) = seen
    assert kind == "image"
    assert text["input_ids"] is own["input_ids"]
    assert image["input_ids"].shape == (2, 48)
    assert "pixel_values" in image
    # One that stays in the model's hands would count as saved. What was given is left as it is.
    assert text["use_cache"] is image["use_cache"] is False
    assert "use_cache" not in own


def test_weights_that_no_batch_reaches_have_no_states() -> None:
    """Nothing comes through the head of Gemma 3's tower."""
    model = build("gemma3")
    text, image = of(model).profiles
    tower = {name for name, _ in model.named_parameters() if "vision_tower" in name}
    head = {name for name in tower if ".head." in name}
    assert head
    assert tower & set(image.rest) == tower - head
    assert not tower & set(text.rest)
    assert text.base == image.base


def test_kinds_that_the_model_does_not_take() -> None:
    with pytest.raises(BadInput, match="batches: image, sound: LlamaForCausalLM takes text"):
        of(llama(), batches={"text": {}, "image": {}, "sound": {}})


def test_kinds_that_nobody_trains_with_have_no_profile_and_no_room() -> None:
    sizes = {"tokens": 8, "kinds": ("text",)}  # too few for an image
    with warnings.catch_warnings():
        warnings.simplefilter("error", Guessed)
        planner = of(build("gemma3"), **sizes)
    assert [profile.kind for profile in planner.profiles] == ["text"]
    assert planner.headroom == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kinds": ("text", "sound")}, "kinds: sound: Gemma3ForConditionalGeneration takes text, image"),
        ({"kinds": ("text",), "batches": {"image": {}}}, r"batches: image: of kinds that kinds=\('text',\) leaves out"),
        ({"kinds": "text"}, "kinds='text' are no kinds of batches"),
        ({"kinds": ()}, r"kinds=\(\) are no kinds of batches"),
    ],
)
def test_kinds_that_are_none(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        of(build("gemma3"), **wrong)


def test_without_a_text_batch_there_is_no_plan() -> None:
    """Nothing is left free instead: there is no profile at all."""
    with pytest.raises(BadInput, match="no text batch can be made for Plain: it is no transformers model"):
        of(Plain(blocks=plain_blocks(3)))


@pytest.fixture(scope="module")
def guessed() -> Planner:
    with pytest.warns(
        Guessed, match=r"steps with image batches are not profiled, and 4 GiB.*tokens=8 are too few"
    ) as all_:
        found = of(build("idefics3"), tokens=8)
    assert len(all_) == 1
    return found


def test_a_kind_that_cannot_be_made_is_guessed(guessed: Planner) -> None:
    assert [profile.kind for profile in guessed.profiles] == ["text"]
    assert guessed.headroom == HEADROOM == 4 * 1024**3
    # No batch of text reaches the tower, and one of images may: its states count.
    assert set(guessed.profiles[0].rest) < set(trained_beside(guessed.model, blocks_of(guessed)))
    assert guessed.profiles[0].base >= 3 * sum(one.nbytes for one in guessed.model.parameters())


def blocks_of(planner: Planner) -> list[Any]:
    return [block.module for block in planner.anatomy.blocks]


def test_what_is_guessed_is_left_free(guessed: Planner) -> None:
    enough = smallest(guessed).peak
    plain = replace(guessed, headroom=0)
    expected = plain.search(enough, margin=1.0)
    with pytest.raises(NothingFits):
        guessed.search(enough + HEADROOM - 1, margin=1.0)
    assert guessed.search(enough + HEADROOM, margin=1.0) == expected


def test_no_guess_is_needed_for_a_kind_that_is_given() -> None:
    """The same model as above: its own image's batch has enough tokens."""
    from pytest_memleak.planner.inputs import batch

    model = build("idefics3")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Guessed)
        found = of(model, tokens=8, batches={"image": batch(model, "image", tokens=48)})
    assert [profile.kind for profile in found.profiles] == ["text", "image"]
    assert found.headroom == 0


def test_a_search_says_what_its_estimates_say(of_images: Planner) -> None:
    low, high = smallest(of_images).peak, of_images.estimate(Plan(LAYERS, 0)).peak
    for capacity in (low, (low + high) // 2, high):
        found = of_images.search(capacity, margin=1.0)
        point = of_images.estimate(found.plan)
        assert (found.peak, found.where) == (point.peak, point.where)
        assert found.peak <= capacity
        assert found.seconds == of_images.seconds(found.plan)
    assert found.seconds <= of_images.seconds(Plan(LAYERS, 0)) * (1 + 1e-9)


def test_the_margin_is_a_tenth(of_text: Planner) -> None:
    peak = smallest(of_text).peak
    assert peak <= of_text.search(round(peak * 1.11)).peak <= peak * 1.01
    with pytest.raises(NothingFits, match=r"times 1\.1"):
        of_text.search(round(peak * 1.09))


def test_activations_that_are_to_stay(of_text: Planner) -> None:
    found = of_text.search(10**9, n_checkpoint=0, n_persist=0, n_buffer=1, n_offload=0, n_swap=2)
    assert found.plan == Plan(0, 1, 2, 0, 0)
    whole = of_text.estimate(Plan(6, 0)).peak
    with pytest.warns(FilledIn):
        moving = of_text.search(whole - 1, margin=1.0, n_persist=6, n_buffer=0, n_checkpoint=0).plan
    assert moving.n_swap or moving.n_offload
    kept = of_text.search(whole - 1, margin=1.0, forbid_activation_offload=True).plan
    assert kept.n_swap == kept.n_offload == 0
    with pytest.raises(BadInput, match="forbid_activation_offload"):
        of_text.search(10**9, n_swap=1, forbid_activation_offload=True)


def test_what_is_filled_in_is_said(of_text: Planner) -> None:
    with pytest.warns(FilledIn, match=r"^n_persist=2 and n_swap=1 as given; filled in: n_buffer=\d, n_check") as said:
        found = of_text.search(10**9, n_persist=2, n_swap=1)
    assert (found.plan.n_persist, found.plan.n_swap) == (2, 1)
    with pytest.warns(FilledIn, match=r"n_swap=1 was given.*n_checkpoint=5") as also:
        assert of_text.complete(n_swap=1) == Plan(0, 1, 1, 5)
    # The line that is blamed is the caller's.
    assert {warning.filename for warning in (*said, *also)} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FilledIn)
        of_text.search(10**9)
        assert of_text.complete(n_persist=6, n_buffer=0, n_swap=0, n_checkpoint=0, n_offload=0) == Plan(6, 0)


def test_a_plan_that_cannot_run_is_refused_before_anything_moves(of_text: Planner) -> None:
    with pytest.raises(BadInput, match=r"n_persist=0 n_buffer=0 .* cannot run: n_buffer=0 is too few"):
        of_text.train(Plan(0, 0))


def test_a_plan_that_cannot_run_has_no_estimate(of_text: Planner) -> None:
    for plan in (Plan(99, 0), Plan(0, 0), Plan(6, 0, n_checkpoint=50)):
        for ask in (of_text.estimate, of_text.seconds):
            with pytest.raises(BadInput, match=f"^{plan} cannot run: "):
                ask(plan)


def test_what_a_search_says_is_needed_is_enough(guessed: Planner) -> None:
    """With what is left free."""
    with pytest.raises(NothingFits, match="with 4 GiB left free") as raised:
        guessed.search(1)
    assert guessed.search(raised.value.needed).peak == raised.value.smallest.peak


def test_a_step_that_trains_nothing_has_no_profile() -> None:
    with pytest.raises(BadInput, match="no weight of LlamaForCausalLM that is trained has a part in the loss"):
        of(llama().requires_grad_(False))
    ids = torch.ones(1, 8, dtype=torch.long)
    with pytest.raises(BadInput, match="without a loss for a batch of input_ids, use_cache: give it labels"):
        of(llama(), batches={"text": {"input_ids": ids}})


def test_nothing_is_profiled_while_a_plan_has_weights_off_the_card(of_text: Planner) -> None:
    with of_text.train(Plan(0, 1)), pytest.raises(BadInput, match="has no memory, as under a plan: leave the with"):
        of(of_text.model)


def test_profiles_leave_nothing_behind() -> None:
    model = llama(attention_dropout=0.1).eval()
    before, weights = torch.random.get_rng_state(), [weight.clone() for weight in model.parameters()]
    of(model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not model.training
    assert all(weight.grad is None for weight in model.parameters())
    assert all(map(torch.equal, weights, model.parameters()))


@pytest.fixture(scope="module")
def larger() -> Planner:
    return of(llama(hidden_size=128, intermediate_size=256), rows=2, tokens=128)


@pytest.mark.skipif(not shared.cpu_memory().can_enforce, reason="peaks on the CPU need the exact engine")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_a_plan_that_was_found_holds_what_it_promises(share: float, larger: Planner) -> None:
    low, high = smallest(larger).peak, larger.estimate(Plan(6, 0)).peak
    found = larger.search(round(low + share * (high - low)), margin=1.0)
    peak = taken(larger, found.plan)
    assert peak == pytest.approx(found.peak, rel=0.02)
    assert peak < taken(larger, Plan(6, 0)) == pytest.approx(high, rel=0.01)


@pytest.mark.skipif(not shared.cpu_memory().can_enforce, reason="peaks on the CPU need the exact engine")
def test_blocks_behind_frozen_ones_save_for_their_inputs_too() -> None:
    """All but the first of those that are trained."""
    model = llama()
    for name, weight in model.named_parameters():
        weight.requires_grad_(any(f"layers.{block}." in name for block in (2, 3, 4, 5)))
    planner = of(model, rows=2, tokens=128)
    for plan in (Plan(6, 0), Plan(0, 1), Plan(0, 2, n_checkpoint=6)):
        assert planner.estimate(plan).peak == pytest.approx(taken(planner, plan), rel=0.01), plan


def taken(planner: Planner, plan: Plan) -> int:
    """The peak of the third step, without what torch keeps for the optimizer on the host."""
    own = {id(weight) for weight in planner.model.parameters()}
    with planner.train(plan) as training, contextlib.closing(levels_of(torch.device("cpu"))) as levels:
        for batch in batches(3, rows=2, tokens=128):
            levels.highest()
            planner.model(**batch).loss.backward()
            training.step()
        of_host: list[int] = [
            kept.nbytes
            for optimizer in training.optimizers
            for weight, state in optimizer.state.items()
            if id(weight) not in own
            for kept in state.values()
        ]
        return levels.highest() - sum(of_host)
