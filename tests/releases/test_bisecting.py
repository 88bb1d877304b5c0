"""The search, with verdicts that are fed to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest

from pytest_memleak.releases.bisecting import Answer, bisect
from pytest_memleak.releases.cell import Verdict

RELEASES = [f"1.{number}" for number in range(12)]


class Fed:
    """Answers with what is fed: for each release its verdict, or one for each attempt."""

    def __init__(self, verdicts: Mapping[str, Verdict | Sequence[Verdict]]) -> None:
        self._verdicts = verdicts
        self.asked: list[tuple[str, int]] = []

    def __call__(self, wanted: Sequence[tuple[str, int]]) -> list[Verdict]:
        self.asked += wanted
        found: list[Verdict] = []
        for release, attempt in wanted:
            fed = self._verdicts[release]
            found.append(fed if isinstance(fed, str) else fed[attempt - 1])
        return found


def changing_at(place: int, **others: Verdict | Sequence[Verdict]) -> Fed:
    verdicts: dict[str, Verdict | Sequence[Verdict]] = {
        release: "pass" if at < place else "fail" for at, release in enumerate(RELEASES)
    }
    return Fed(verdicts | {name.replace("v", "1."): verdict for name, verdict in others.items()})


@pytest.mark.parametrize("place", range(1, len(RELEASES)))
def test_it_finds_each_change_in_log2_n_runs(place: int) -> None:
    fed = changing_at(place)
    answer = bisect(RELEASES, fed)
    assert (answer.kind, answer.before, answer.after) == ("changed", RELEASES[place - 1], RELEASES[place])
    # Both ends, the search, and both sides of the change once more.
    assert len(fed.asked) <= 2 + math.ceil(math.log2(len(RELEASES) - 1)) + 2
    assert answer.seen[answer.before] == ["pass", "pass"]
    assert answer.seen[answer.after] == ["fail", "fail"]


def test_neighbours_need_no_search() -> None:
    assert bisect(["1.0", "1.1"], Fed({"1.0": "pass", "1.1": "fail"})).kind == "changed"


def test_a_release_that_fixed_it_is_found_too() -> None:
    mended: dict[str, Verdict] = {release: "fail" if at < 7 else "pass" for at, release in enumerate(RELEASES)}
    fed = Fed(mended)
    answer = bisect(RELEASES, fed, fixed=True)
    assert (answer.kind, answer.before, answer.after) == ("changed", "1.6", "1.7")


@pytest.mark.parametrize(
    ("first", "last"), [("fail", "fail"), ("pass", "pass"), ("not-run", "fail"), ("pass", "inconclusive")]
)
def test_ends_without_the_promised_verdict_end_it(first: Verdict, last: Verdict) -> None:
    passing: dict[str, Verdict] = dict.fromkeys(RELEASES, "pass")
    fed = Fed({**passing, "1.0": first, "1.11": last})
    answer = bisect(RELEASES, fed)
    assert answer.kind == "ends"
    assert fed.asked == [("1.0", 1), ("1.11", 1)], "nothing more is run"


def test_one_that_differs_between_two_runs_is_flaky_and_not_a_change() -> None:
    answer = bisect(RELEASES, changing_at(6, v6=("fail", "pass")))
    assert (answer.kind, answer.seen["1.6"]) == ("flaky", ["fail", "pass"])
    assert bisect(RELEASES, changing_at(6, v5=("pass", "fail"))).kind == "flaky"


def test_a_second_run_without_a_verdict_confirms_nothing() -> None:
    assert bisect(RELEASES, changing_at(6, v6=("fail", "not-run"))).kind == "unconfirmed"


def test_releases_without_a_verdict_are_stepped_over() -> None:
    answer = bisect(RELEASES, changing_at(9, v5="not-run", v6="inconclusive"))
    assert (answer.kind, answer.before, answer.after) == ("changed", "1.8", "1.9")
    assert answer.stepped_over == ("1.5", "1.6")


def test_where_the_change_hides_in_them_all_of_them_are_named() -> None:
    fed = changing_at(6, v5="not-run", v6="inconclusive")
    answer = bisect(RELEASES, fed)
    assert answer == Answer(
        "between", "1.4", "1.7", answer.seen, stepped_over=("1.5", "1.6"), suspects=("1.5", "1.6", "1.7")
    )
    assert [release for release, attempt in fed.asked].count("1.5") == 1, "who gave no verdict is not asked again"


def test_nothing_but_ends_that_give_a_verdict() -> None:
    nothing: dict[str, Verdict] = dict.fromkeys(RELEASES, "not-run")
    fed = Fed({**nothing, "1.0": "pass", "1.11": "fail"})
    answer = bisect(RELEASES, fed)
    assert answer.kind == "between"
    assert answer.suspects == tuple(RELEASES[1:])
