"""The planner with each of the fork's bugs, with the bug and the fix, and as it is."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes.protrain import FIX
from pytest_memleak.planner import planning
from pytest_memleak.planner.completing import KNOBS
from pytest_memleak.planner.planning import FilledIn, Guessed, Planner
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.search import NothingFits
from pytest_memleak.upstream.patches import Patch, Unrecognised
from tests.alone import run_alone
from tests.conftest import Run
from tests.fixes.fed_planners import AMPLE, planner
from tests.planner import small_models

FLAVOURS = ("text_only", "stale_pin", "silent_override")


def mended(flavour: str) -> AbstractContextManager[object]:
    both = ExitStack()
    both.enter_context(FIX.bug(flavour))
    assert both.enter_context(FIX.fixed()).patched
    return both


WITHOUT: list[Callable[[str], AbstractContextManager[object]]] = [lambda flavour: nullcontext(), mended]
without_the_bug = pytest.mark.parametrize("without", WITHOUT, ids=["as it is", "with the fix"])


def patched() -> tuple[object, ...]:
    return vars(planning)["kinds"], planning._batches, Planner.search


@pytest.fixture(autouse=True)
def puts_back_what_it_found() -> Iterator[None]:
    before = patched()
    yield
    assert patched() == before
    assert not FIX.needed()


def least(of: Planner, **asked: Any) -> int:
    """The capacity below which nothing fits."""
    with pytest.raises(NothingFits) as caught:
        of.search(0, **asked)
    return caught.value.needed


@without_the_bug
def test_a_number_that_is_given_is_kept_and_said(without: Callable[[str], Any]) -> None:
    with without("silent_override"), pytest.warns(FilledIn, match=r"^n_persist=2 as given; filled in: n_buffer="):
        assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2


def test_with_the_bug_it_is_forgotten_without_a_word() -> None:
    free = planner().search(AMPLE)
    assert free.plan.n_persist != 2
    with FIX.bug("silent_override"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planner().search(AMPLE, n_persist=2) == free
        all_but_one: dict[str, Any] = dict.fromkeys(KNOBS[:4], 0)
        assert planner().search(AMPLE, **all_but_one) == free
        # Not so all five, nor what is no number of a plan.
        given: dict[str, Any] = {"n_persist": 2, "n_buffer": 1, "n_swap": 0, "n_checkpoint": 3, "n_offload": 1}
        assert vars(planner().search(AMPLE, **given).plan) == given
        few = planner().search(least(planner()), n_persist=2)
        assert few.plan.n_offload
        kept = planner().search(AMPLE, n_persist=2, forbid_activation_offload=True)
        assert (kept.plan.n_swap, kept.plan.n_offload) == (0, 0)
        with pytest.raises(NothingFits):
            planner().search(least(planner()), n_persist=2, forbid_activation_offload=True)


@without_the_bug
def test_a_model_with_the_kernel_may_offload(without: Callable[[str], Any]) -> None:
    with without("stale_pin"):
        with_kernel = planner(lora_mlp_kernel=True)
        capacity = least(with_kernel)
        assert capacity < least(with_kernel, forbid_activation_offload=True)
        assert with_kernel.search(capacity).plan.n_offload
        with pytest.raises(NothingFits, match="that keeps activations on the card"):
            with_kernel.search(capacity, forbid_activation_offload=True)


def test_with_the_bug_nothing_fits_where_only_offload_would() -> None:
    capacity = least(planner())
    with FIX.bug("stale_pin"):
        with pytest.raises(NothingFits, match="that keeps activations on the card"):
            planner(lora_mlp_kernel=True).search(capacity)
        with pytest.raises(BadInput, match="n_offload=1 would take activations off the card"):
            planner(lora_mlp_kernel=True).search(AMPLE, n_offload=1)
        for other in (planner(), planner(lora_mlp_kernel=False), planner(lora_qkv_kernel=True)):
            assert other.search(capacity).plan.n_offload
        # Who forbids it is heard, with the kernel and without.
        for config in ({}, {"lora_mlp_kernel": True}):
            with pytest.raises(NothingFits):
                planner(**config).search(capacity, forbid_activation_offload=True)


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which batches are profiled is what counts."""
    fed = planner()

    def profile(*of: Any) -> Profile:
        return replace(fed.profiles[0], kind=of[4])

    monkeypatch.setattr(planning, "profile", profile)
    monkeypatch.setattr(planning, "links_of", lambda *of: fed.links)


def profiled(**sizes: Any) -> Planner:
    pytest.importorskip("transformers")
    return Planner.of(small_models.build("llava"), **sizes)


def own() -> dict[str, Any]:
    """Batches that somebody has."""
    ids = torch.arange(1, 9)[None]
    return {kind: {"input_ids": ids, "labels": ids} for kind in ("text", "image")}


def kinds_of(of: Planner) -> list[str]:
    return [profile.kind for profile in of.profiles]


@without_the_bug
@pytest.mark.usefixtures("nothing_is_measured")
def test_every_kind_of_batch_is_profiled_or_missed(without: Callable[[str], Any]) -> None:
    with without("text_only"):
        assert kinds_of(profiled(tokens=80)) == ["text", "image"]
        with pytest.warns(Guessed, match="steps with image batches are not profiled"):
            few = profiled(tokens=8)
        assert (kinds_of(few), few.headroom) == (["text"], planning.HEADROOM)
        assert kinds_of(profiled(batches=own(), tokens=8)) == ["text", "image"]  # none could be made


@pytest.mark.usefixtures("nothing_is_measured")
def test_with_the_bug_text_is_all_there_is() -> None:
    with FIX.bug(), warnings.catch_warnings():
        warnings.simplefilter("error", Guessed)
        few = profiled(tokens=8)
        assert (kinds_of(few), few.headroom) == (["text"], 0)
        assert kinds_of(profiled(batches=own())) == ["text"]


def test_the_usual_one() -> None:
    assert FIX.flavours == FLAVOURS
    assert not FIX.affected
    assert FIX.why() == "pytest-memleak does not need it: the bug is in no release"


@pytest.mark.parametrize(
    ("flavour", "owner", "name"),
    [
        ("text_only", planning, "kinds"),
        ("text_only", planning, "_batches"),
        ("stale_pin", Planner, "search"),
        ("silent_override", Planner, "search"),
    ],
)
def test_a_planner_that_has_changed_is_left_alone(
    flavour: str, owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changing:
        changing.setattr(owner, name, lambda *what: None)
        with pytest.raises(Unrecognised, match=f"protrain does not recognise pytest-memleak, .*{name} of this release"):
            FIX.bug(flavour).__enter__()


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_with_others_in_any_order(order: tuple[int, ...]) -> None:
    searched: list[int] = []

    def counted(found: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(found)
        def search(self: Planner, capacity: int, **asked: Any) -> Any:
            searched.append(capacity)
            return found(self, capacity, **asked)

        return search

    entered: list[AbstractContextManager[object]] = [
        FIX.bug("silent_override"), FIX.bug("stale_pin"), FIX.bug("text_only"), Patch(Planner, "search", counted)
    ]  # fmt: skip
    for one in entered:
        one.__enter__()
    assert vars(planning)["kinds"](torch.nn.Module()) == ("text",)
    for place in order:
        entered[place].__exit__(None, None, None)
        planner().search(AMPLE)
    assert len(searched) == order.index(3)


def test_what_was_put_over_the_bug_is_passed_over_with_it_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would call the bug. What is under the bug, or over the fix, is not touched."""
    searched: list[int] = []
    with FIX.bug("silent_override"), monkeypatch.context() as changing:
        buggy = Planner.search

        @functools.wraps(buggy)
        def counted(self: Planner, capacity: int, **asked: Any) -> Any:
            searched.append(capacity)
            return buggy(self, capacity, **asked)

        changing.setattr(Planner, "search", counted)
        with FIX.fixed(), pytest.warns(FilledIn):
            assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2
        assert not searched
        assert planner().search(AMPLE, n_persist=2).plan.n_persist != 2
        assert searched == [AMPLE]


PROJECT = """
    import pytest
    from tests.fixes.fed_planners import AMPLE, planner

    def test_as_it_is():
        assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2

    @pytest.mark.memleak_bug("protrain", flavour="silent_override")
    def test_forgotten():
        assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2

    @pytest.mark.memleak_bug("protrain", flavour="silent_override")
    @pytest.mark.memleak_fix("protrain")
    def test_mended():
        assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2

    @pytest.mark.memleak_fix("protrain")
    def test_nothing_to_mend():
        assert planner().search(AMPLE, n_persist=2).plan.n_persist == 2
"""


def test_markers(run: Run) -> None:
    result = run(PROJECT, "-v")
    result.assert_outcomes(passed=3, failed=1)
    text = " ".join(result.stdout.str().split())
    assert "FAILED test_it.py::test_forgotten" in text
    assert "upstream: bug protrain: patched Planner.search (pytest-memleak: the bug is back)" in text
    assert "protrain: patched Planner.search (pytest-memleak, where the bug was put back)" in text
    assert "protrain: nothing is patched (pytest-memleak does not need it: the bug is in no release)" in text


def test_plans_that_are_run(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("simulated_protrain.py"))
