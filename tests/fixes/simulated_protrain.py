"""On the simulated card: plans that the planner finds with a bug and without it, run on cards of the size asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch

import pytest_memleak
from pytest_memleak.fixes.protrain import FIX
from pytest_memleak.planner.anatomy import anatomy
from pytest_memleak.planner.inputs import batch
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.planning import Planner
from pytest_memleak.planner.running.training import Training
from pytest_memleak.planner.search import NothingFits
from pytest_memleak.prediction import Prediction
from tests.planner.families.sizes import TEXT, VISION
from tests.planner.llamas import adamw

CARD = torch.device("cuda:0")
SIZES: dict[str, Any] = {"rows": 48, "tokens": 320}
OPTIMIZER = adamw(lr=1e-3)


def looking() -> Any:
    """A tower as wide and as deep as it is beside a decoder of this size in real models: images take a third more."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    wide = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    image = {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 14, "projection_dim": 32}
    config = LlavaConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, **wide, **image},
        image_token_index=500,
        image_seq_length=256,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).to(CARD).train()


@pytest.fixture(scope="module", autouse=True)
def expandable() -> Iterator[None]:
    """A peak is what is allocated: on so small a card what lies idle between would be more than a fifth of it."""
    with pytest.MonkeyPatch.context() as changing:
        changing.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        yield


class Known(NamedTuple):
    capacity: int
    """The least with which there is a plan for every kind of batch, by their profiles."""
    plan: Plan
    """The one there is."""
    layout: Layout


def planned(search: Callable[[Planner], None]) -> None:
    pytest_memleak.predict(lambda card: search(Planner.of(looking(), make_optimizer=OPTIMIZER, **SIZES)), "24G")


@pytest.fixture(scope="module")
def known() -> Known:
    found: list[Known] = []

    def search(planner: Planner) -> None:
        assert [profile.kind for profile in planner.profiles] == ["text", "image"]
        with pytest.raises(NothingFits) as caught:
            planner.search(0)
        capacity = caught.value.needed
        found.append(Known(capacity, planner.search(capacity).plan, planner.layout))

    with FIX.fixed():  # a test with the bug may be the first to ask
        planned(search)
    return found[0]


def plan_for(capacity: int) -> Plan:
    found: list[Plan] = []
    planned(lambda planner: found.append(planner.search(capacity).plan))
    return found[0]


def trained(plan: Plan, known: Known, kind: str) -> Prediction:
    """Two steps: the second has the optimizer's state from the start.

    Weights that the host's optimizer has changed are nobody's values: a doubt about them is none about the memory.
    """

    def run(card: object) -> None:
        model = looking()
        given = batch(model, kind, device=CARD, **SIZES)
        blocks = [block.module for block in anatomy(model).blocks]
        with Training(model, blocks, known.layout, plan, OPTIMIZER) as training:
            for _ in range(2):
                model(**given, use_cache=False).loss.backward()
                training.step()

    return pytest_memleak.predict(run, known.capacity)


@pytest.mark.memleak_bug("protrain")
def test_a_plan_for_text_alone_breaks_with_images(known: Known) -> None:
    plan = plan_for(known.capacity)
    assert plan != known.plan
    assert trained(plan, known, "text").fits
    with_images = trained(plan, known, "image")
    assert not with_images.fits
    assert "out of memory" in with_images.refusal


def test_a_plan_for_every_kind_holds(known: Known) -> None:
    for kind in ("text", "image"):
        assert trained(known.plan, known, kind).fits


@pytest.mark.memleak_bug("protrain")
@pytest.mark.memleak_fix("protrain")
def test_the_same_is_found_with_the_fix(known: Known) -> None:
    assert plan_for(known.capacity) == known.plan
