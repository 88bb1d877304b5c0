"""Against all plans, one by one."""

from __future__ import annotations

import math
import sys
from functools import cache
from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest

from pytest_memleak.errors import BadInput, Unavailable
from pytest_memleak.planner import candidates
from pytest_memleak.planner.completing import KNOBS
from pytest_memleak.planner.estimate import estimate_peak, highest
from pytest_memleak.planner.layout import Layout
from pytest_memleak.planner.pace import Links, mean_seconds
from pytest_memleak.planner.paces import mean
from pytest_memleak.planner.plan import Plan
from pytest_memleak.planner.profile import Profile
from pytest_memleak.planner.search import ALPHA, NothingFits, ladder, search
from pytest_memleak.planner.segments import Segments
from pytest_memleak.planner.streams import Streams
from pytest_memleak.wording import size
from tests.planner.fed import all_plans, all_triples, decoder, odd_layout, odd_links, odd_profile

LINKS = Links(2e10, 2e10, 4e9)
GIB = 1024**3


@pytest.fixture(params=["as it is", "as if it were large"], autouse=True)
def size_of_steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search does only where there is a lot to search, it does for a few plans, too."""
    if request.param != "as it is":
        monkeypatch.setattr(candidates, "_GROUPS", 2)
        monkeypatch.setattr(candidates, "_FIRST", 2)


class Estimated(NamedTuple):
    peak: int
    seconds: float
    plan: Plan


class Case(NamedTuple):
    profiles: list[Profile]
    layout: Layout
    links: Links
    plans: list[Estimated]


@cache
def odd_case(seed: int, blocks: int, kinds: int, chunks: tuple[int, ...] = (1, 2)) -> Case:
    random = Random(seed)
    layout, links = odd_layout(random, blocks, chunks), odd_links(random)
    return estimated([odd_profile(random, blocks) for _ in range(kinds)], layout, links)


@cache
def small_decoder(lora: bool, speed: float, alike: bool) -> Case:
    layout, profile = decoder(5, random=None if alike else Random(7), lora=lora, speed=speed)
    return estimated([profile], layout, LINKS)


def estimated(profiles: list[Profile], layout: Layout, links: Links) -> Case:
    plans = [
        Estimated(estimate_peak(profiles, layout, plan), mean_seconds(profiles, layout, plan, links), plan)
        for plan in all_plans(layout)
    ]
    return Case(profiles, layout, links, plans)


def check(case: Case, capacity: int, margin: float = ALPHA, forbid: bool = False, **fixed: int) -> None:
    """That no plan is better, by looking at each."""
    plans = [one for one in case.plans if all(getattr(one.plan, name) == value for name, value in fixed.items())]
    plans = [one for one in plans if not (forbid and (one.plan.n_swap or one.plan.n_offload))]
    fitting = [one for one in plans if one.peak * margin <= capacity]
    asked = (case.profiles, case.layout, capacity, case.links)
    if not fitting:
        with pytest.raises(NothingFits) as raised:
            search(*asked, margin=margin, fixed=fixed, forbid_activation_offload=forbid)
        least = min(one.peak for one in plans)
        assert raised.value.smallest.peak == least
        assert raised.value.needed == math.ceil(least * margin)
        return
    found = search(*asked, margin=margin, fixed=fixed, forbid_activation_offload=forbid)
    fastest = min(one.seconds for one in fitting)
    assert found.seconds == pytest.approx(fastest, rel=1e-8)
    assert found.peak <= min(one.peak for one in fitting if one.seconds == fastest)
    assert Estimated(found.peak, found.seconds, found.plan) in fitting
    faster = [one.peak for one in plans if one.seconds < fastest * (1 - 1e-8)]
    larger = found.why_not_larger
    assert (larger.rung.peak if larger else None) == min(faster, default=None)
    if larger:
        assert larger.missing == math.ceil(larger.rung.peak * margin) - capacity > 0


def capacities(case: Case, random: Random, count: int) -> list[int]:
    """Of some plans exactly, and one byte less; and where nothing and where everything fits."""
    peaks = [math.ceil(random.choice(case.plans).peak * ALPHA) for _ in range(count)]
    ends = [math.ceil(end(one.peak for one in case.plans) * ALPHA) for end in (min, max)]
    return [*ends, ends[0] - 1, *peaks, *(peak - 1 for peak in peaks)]


@pytest.mark.parametrize("seed", range(18))
def test_no_plan_of_an_odd_model_is_better(seed: int) -> None:
    case = odd_case(seed, blocks=1 + seed % 5, kinds=1 + seed % 3, chunks=((1,), (1, 2), (0, 1, 3))[seed % 3])
    for capacity in capacities(case, Random(seed), 4):
        check(case, capacity)


@pytest.mark.parametrize("seed", [100])
def test_no_plan_of_six_blocks_is_better(seed: int) -> None:
    case = odd_case(seed, blocks=6, kinds=2)
    for capacity in capacities(case, Random(seed), 5):
        check(case, capacity)


@pytest.mark.parametrize("seed", range(8))
def test_no_plan_with_the_numbers_that_are_fixed_is_better(seed: int) -> None:
    case = odd_case(200 + seed, blocks=2 + seed % 4, kinds=1 + seed % 2)
    random = Random(seed)
    for capacity in capacities(case, random, 4):
        plan = random.choice(case.plans).plan
        chosen = random.sample(KNOBS, random.randrange(1, 5))
        check(case, capacity, **{name: getattr(plan, name) for name in chosen})
    for capacity in capacities(case, random, 1):
        check(case, capacity, forbid=True)
        check(case, capacity, forbid=True, n_checkpoint=random.randrange(case.layout.blocks + 1))


@pytest.mark.parametrize(
    ("lora", "speed", "alike"),
    [(False, 1, True), (True, 1, True), (False, 4, True), (True, 4, False), (False, 1, False)],
)
def test_no_plan_of_a_small_decoder_is_better(lora: bool, speed: float, alike: bool) -> None:
    case = small_decoder(lora, speed, alike)
    for capacity in capacities(case, Random(7), 5):
        check(case, capacity)
        check(case, capacity, margin=1.0, forbid=True)


@pytest.mark.parametrize(("lora", "speed", "kinds"), [(False, 1, 1), (True, 3, 2), (False, 3, 2), (True, 1, 1)])
def test_no_plan_of_many_blocks_is_better(lora: bool, speed: float, kinds: int) -> None:
    """By the tables that say what the walk says (see test_tables): there are 950,000 plans."""
    random = Random(11)
    decoders = [decoder(24, random=random, lora=lora, speed=speed) for _ in range(kinds)]
    layout, profiles = decoders[0][0], [profile for _, profile in decoders]
    streams, segments = Streams(layout, LINKS), [Segments(profile, LINKS) for profile in profiles]
    triples = all_triples(24)
    pairs = range(len(streams))
    peaks = np.array([np.max([one.peaks(triples, streams.held(pair)) for one in segments], axis=0) for pair in pairs])
    copies = [streams.copies(np.array([pair])) for pair in pairs]
    seconds = np.array([mean([one.pace.seconds(triples, of_pair) for one in segments]) for of_pair in copies])
    for share in (0.0, 0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0):
        capacity = int(peaks.min() + share * (peaks.max() - peaks.min()))
        found = search(profiles, layout, capacity, LINKS, margin=1.0)
        fastest = seconds[peaks <= capacity].min()
        assert found.seconds == pytest.approx(fastest, rel=1e-8)
        assert found.peak <= peaks[(seconds <= fastest) & (peaks <= capacity)].min()
        faster = peaks[seconds < fastest * (1 - 1e-8)]
        assert (found.why_not_larger.rung.peak if found.why_not_larger else None) == (
            faster.min() if faster.size else None
        )


@pytest.mark.parametrize("seed", range(6))
def test_the_ladder_has_all_plans_that_no_other_one_beats(seed: int) -> None:
    case = odd_case(300 + seed, blocks=2 + seed % 3, kinds=1 + seed % 2)
    front: list[Estimated] = []
    for one in sorted(case.plans, key=lambda one: one[:2]):
        if not front or one.seconds < front[-1].seconds * (1 - 1e-9):
            front.append(one)
    rungs = list(ladder(case.profiles, case.layout, case.links))
    assert [rung.peak for rung in rungs] == [one.peak for one in front]
    assert [rung.seconds for rung in rungs] == pytest.approx([one.seconds for one in front], rel=1e-8)


def test_a_plan_fits_at_its_peak_times_the_margin_and_not_a_byte_below() -> None:
    layout, profile = decoder(4)
    roomy = search([profile], layout, 100 * GIB, LINKS)
    assert roomy.why_not_larger is None
    assert search([profile], layout, math.ceil(roomy.peak * 1.1), LINKS).plan == roomy.plan
    tight = search([profile], layout, math.ceil(roomy.peak * 1.1) - 1, LINKS)
    assert tight.why_not_larger is not None
    assert (tight.why_not_larger.rung.plan, tight.why_not_larger.missing) == (roomy.plan, 1)
    assert search([profile], layout, roomy.peak, LINKS, margin=1.0).plan == roomy.plan


def test_what_is_found_says_where_its_peak_is_and_what_the_next_one_lacks() -> None:
    layout, profile = decoder(8)
    found = search([profile], layout, 12 * GIB, LINKS)
    assert found.where == highest([profile], layout, found.plan).where
    larger = found.why_not_larger
    assert larger is not None
    assert str(larger) == (
        f"the next larger plan ({larger.rung.plan}) does not fit: at its peak ({larger.rung.where}) it lacks "
        f"{larger.missing / 1024**2:.4g} MiB"
    )


def test_where_nothing_fits_it_says_what_would() -> None:
    layout, profile = decoder(8)
    with pytest.raises(NothingFits) as raised:
        search([profile], layout, 4 * GIB, LINKS)
    plan, peak = raised.value.smallest.plan, raised.value.smallest.peak
    assert peak == min(estimate_peak([profile], layout, one) for one in all_plans(layout))
    assert str(raised.value) == (
        f"no plan fits 4 GiB: the smallest one ({plan}) has a peak of {size(peak)} (after the blocks); times 1.1, "
        f"since an estimate may be short, that takes a capacity of {size(raised.value.needed)}"
    )
    assert search([profile], layout, raised.value.needed, LINKS).peak == peak
    with pytest.raises(NothingFits, match=r"\(after the blocks\), which takes a capacity of [\d,]+ B$"):
        search([profile], layout, peak - 1, LINKS, margin=1.0)


def test_where_nothing_fits_with_what_is_fixed_it_names_that() -> None:
    layout, profile = decoder(8)
    with pytest.raises(NothingFits, match=r"^no plan with n_persist=3 and n_checkpoint=1 fits 8 GiB: "):
        search([profile], layout, 8 * GIB, LINKS, fixed={"n_persist": 3, "n_checkpoint": 1})
    with pytest.raises(NothingFits, match=r"^no plan that keeps activations on the card fits 4 GiB: "):
        search([profile], layout, 4 * GIB, LINKS, forbid_activation_offload=True)


def test_what_cannot_be_is_refused_before_the_search() -> None:
    layout, profile = decoder(4)
    with pytest.raises(BadInput, match="n_swap=3 and n_offload=2 make 5 blocks"):
        search([profile], layout, GIB, LINKS, fixed={"n_swap": 3, "n_offload": 2})
    with pytest.raises(BadInput) as raised:
        search([profile], layout, GIB, LINKS, fixed={"n_swap": 2, "n_offload": 0}, forbid_activation_offload=True)
    assert str(raised.value) == (
        "n_swap=2 would take activations off the card, and forbid_activation_offload says that they stay: leave out "
        "one of the two"
    )
    for profiles in ([], [decoder(3)[1]]):
        with pytest.raises(ValueError, match="profiles of a model with 4 blocks"):
            search(profiles, layout, GIB, LINKS)


def test_activations_that_stay_are_all_that_is_forbidden() -> None:
    layout, profile = decoder(8)
    allowed = search([profile], layout, 8 * GIB, LINKS)
    kept = search([profile], layout, 8 * GIB, LINKS, forbid_activation_offload=True)
    assert allowed.plan.n_swap + allowed.plan.n_offload > 0
    assert kept == search([profile], layout, 8 * GIB, LINKS, fixed={"n_swap": 0, "n_offload": 0})
    assert kept.plan.n_persist < len(layout.chunks)


def test_without_numpy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest_memleak.planner.candidates", None)
    layout, profile = decoder(4)
    with pytest.raises(Unavailable, match="pip install numpy"):
        search([profile], layout, GIB, LINKS)


def test_what_is_left_free_is_part_of_what_is_needed() -> None:
    layout, profile = decoder(8)
    free = GIB // 2
    with pytest.raises(NothingFits, match=r"fits 4 GiB with 512 MiB left free: .* that with 512 MiB left f") as raised:
        search([profile], layout, 4 * GIB, LINKS, headroom=free)
    needed = raised.value.needed
    with pytest.raises(NothingFits):
        search([profile], layout, needed - 1, LINKS, headroom=free)
    assert search([profile], layout, needed, LINKS, headroom=free) == search([profile], layout, needed - free, LINKS)


@pytest.mark.parametrize(
    "odd", [{"capacity": "24G"}, {"capacity": math.inf}, {"margin": 0}, {"margin": -1.0}, {"margin": math.nan}]
)
def test_odd_sizes_are_refused(odd: dict[str, Any]) -> None:
    layout, profile = decoder(2)
    with pytest.raises(BadInput, match=r"^(capacity|margin)=.* has to be a number of (bytes|more)"):
        search([profile], layout, odd.get("capacity", GIB), LINKS, margin=odd.get("margin", ALPHA))
