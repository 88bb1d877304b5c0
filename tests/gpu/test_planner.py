"""Plans on a real card: the same training as without one, and the peak that was estimated."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from pytest_memleak.planner import Plan, Planner
from pytest_memleak.planner.levels import levels_of
from tests.planner.llamas import BLOCKS, adamw, adapted, llama, plans

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SIZES = {"hidden_size": 512, "intermediate_size": 1024}
OPTIMIZER = adamw(lr=1e-3)


def batch(rows: int = 4, tokens: int = 512) -> dict[str, Any]:
    ids = torch.randint(0, 200, (rows, tokens), generator=torch.Generator().manual_seed(1)).cuda()
    return {"input_ids": ids, "labels": ids, "use_cache": False}


def planned(adapters: bool) -> Planner:
    model = llama(**SIZES).cuda()
    return Planner.of(adapted(model) if adapters else model, make_optimizer=OPTIMIZER, batches={"text": batch()})


def trained(planner: Planner, plan: Plan, steps: int) -> tuple[list[float], int]:
    """The losses, and the peak of the last step."""
    losses, taken = [], 0
    with planner.train(plan) as training:
        for _ in range(steps):
            torch.cuda.synchronize()
            levels = levels_of(torch.device("cuda:0"))
            loss = planner.model(**batch()).loss
            loss.backward()
            training.step()
            torch.cuda.synchronize()
            taken = levels.highest()
            losses.append(loss.item())
    return losses, taken


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "adapters"])
def test_every_kind_of_plan_trains_as_without_one(adapters: bool) -> None:
    if adapters:
        pytest.importorskip("peft")
    expected, _ = trained(planned(adapters), Plan(BLOCKS, 0), steps=20)
    assert expected[-1] < expected[0]
    for name, plan in plans().items():
        # The optimizer on the host rounds otherwise.
        assert trained(planned(adapters), plan, steps=20)[0] == pytest.approx(expected, rel=2e-3), name


@pytest.mark.parametrize("adapters", [False, True], ids=["all weights", "adapters"])
def test_peaks_are_as_estimated(adapters: bool) -> None:
    if adapters:
        pytest.importorskip("peft")
    errors = {}
    for name, plan in plans().items():
        planner = planned(adapters)
        _, taken = trained(planner, plan, steps=2)
        errors[name] = planner.estimate(plan).peak / taken - 1
        del planner  # with its model: the next one's profile counts what is there
    assert all(-0.02 < error < 0.05 for error in errors.values()), errors


def test_seconds_are_measured() -> None:
    planner = planned(adapters=False)
    assert planner.profiles[0].how == "measured"
    assert planner.links.to_card > 1e9
    assert planner.seconds(Plan(BLOCKS, 0)) > 0
    assert planner.seconds(Plan(BLOCKS, 0, n_checkpoint=BLOCKS)) > planner.seconds(Plan(BLOCKS, 0))
