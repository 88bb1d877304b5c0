"""Who may have how much of a card: with readings that are fed, no driver, and no process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pytest_memleak.workers.driver import Device
from pytest_memleak.workers.fitting import CONTEXT, Card
from pytest_memleak.workers.holders import Hold, Holder, Want
from pytest_memleak.workers.need import Bytes, Share

GIB = 1024**3
TOTAL = 140 * GIB
ME, OTHER, THIRD, STRANGER = 10, 20, 30, 99


def gib(count: float) -> Bytes:
    return Bytes(round(count * GIB), "the test")


def holder(pid: int, idle: float = 0, claim: float = 0, **more: object) -> Holder:
    foreign = more.get("foreign")
    known = None if foreign is None else round(float(str(foreign)) * GIB)
    return Holder(pid, f"gw{pid}", cards={"c": Hold(round(idle * GIB), round(claim * GIB), known, 1.0)})


def card(*others: Holder, used: float = 0, listed: Mapping[int, float] | None = None, me: Holder | None = None) -> Card:
    """`listed`: what the driver tells of processes; without it, it tells of none, as in a container."""
    told = None if listed is None else {pid: round(taken * GIB) for pid, taken in listed.items()}
    return Card(
        "0",
        Device("c", "H200", TOTAL),
        round(used * GIB),
        lambda: told if told is not None else {},
        me or holder(ME),
        others,
        lambda pid, among: pid if pid in among else {21: OTHER}.get(pid),
    )


def test_a_claim_is_the_test_and_its_context() -> None:
    assert card().claim(gib(16), beside=False) == 16 * GIB + CONTEXT


def test_eight_tests_of_16_gib_fit_on_an_h200_and_a_ninth_does_not() -> None:
    h200 = 139.8
    claims: list[Holder] = []
    for pid in range(1, 10):
        claim = card(*claims, used=TOTAL / GIB - h200).claim(gib(16), beside=False)
        if claim is None:
            break
        claims.append(Holder(pid, "", cards={"c": Hold(claim=claim)}))
    assert len(claims) == 8


@pytest.mark.parametrize(("need", "fits"), [(39.5, True), (39.6, False)])
def test_what_strangers_have_is_not_given_out(need: float, fits: bool) -> None:
    assert (card(used=100).claim(gib(need), beside=False) is not None) == fits


@pytest.mark.parametrize(("need", "fits"), [(75.5, True), (75.6, False)])
def test_what_a_running_test_uses_of_its_claim_is_not_counted_twice(need: float, fits: bool) -> None:
    """The driver knows 50 GiB: 40 of the test that has 60, and 4 of a stranger, and 6 of another that claims none."""
    there = card(holder(OTHER, 0.5, 60), used=44, listed={OTHER: 40, STRANGER: 4})
    assert (there.claim(gib(need), beside=False) is not None) == fits


def test_what_children_of_our_processes_have_is_theirs() -> None:
    there = card(holder(OTHER, 0.5, 60), used=50, listed={OTHER: 1, 21: 45, STRANGER: 4})
    assert there.foreign.bytes == 4 * GIB
    assert there.foreign.strangers == {STRANGER: 4 * GIB}


def test_who_takes_more_than_he_said_is_seen() -> None:
    there = card(holder(OTHER, 0.5, 60), used=100, listed={OTHER: 100})
    assert there.claim(gib(39.5), beside=False) is not None
    assert there.claim(gib(39.6), beside=False) is None


class TestWithoutNames:
    """A driver that does not tell who has what, or tells it by numbers of another namespace."""

    @pytest.mark.parametrize("listed", [None, {4711: 44.0}])
    def test_what_others_had_when_nothing_ran_is_remembered(self, listed: Mapping[int, float] | None) -> None:
        there = card(holder(OTHER, 0.5, 60, foreign=4), used=44, listed=listed)
        assert there.foreign.bytes == 4 * GIB
        assert not there.foreign.certain

    def test_nobody_knows_what_they_had(self) -> None:
        """Then all that is in use may be theirs, but for what ours keep."""
        assert card(holder(OTHER, 0.5, 60), used=44).foreign.bytes == 43.5 * GIB

    def test_they_have_less_than_they_had(self) -> None:
        assert card(holder(OTHER, 0.5, 60, foreign=30), used=20).foreign.bytes == 19.5 * GIB

    def test_they_have_more_than_ours_can_account_for(self) -> None:
        assert card(holder(OTHER, 0.5, 60, foreign=4), used=100).foreign.bytes == 40 * GIB

    def test_when_nothing_runs_it_is_what_ours_do_not_keep(self) -> None:
        there = card(holder(OTHER, 3), used=10, me=holder(ME, 2))
        assert there.foreign.certain
        assert there.foreign.bytes == 5 * GIB
        assert card(holder(OTHER, 3), used=10, me=holder(ME, 2)).known_foreign(7.0) == (5 * GIB, 7.0)

    def test_while_something_runs_nothing_is_known_anew(self) -> None:
        there = card(holder(OTHER, 0.5, 60), used=10)
        assert there.known_foreign(7.0) == (None, 0.0)
        assert there.foreign.bytes > 0
        assert there.known_foreign(7.0) == (None, 0.0)

    def test_what_was_known_is_handed_on(self) -> None:
        """By whoever comes while something runs: the one that knew may be gone before it ends."""
        assert card(holder(OTHER, 0.5, 60, foreign=4), used=44).known_foreign(7.0) == (4 * GIB, 1.0)

    def test_nothing_is_given_out_that_the_driver_says_is_gone(self) -> None:
        """Whatever is believed of the others."""
        for used in range(0, 140, 7):
            for claimed in (0, 10, 60):
                there = card(holder(OTHER, 1, claimed, foreign=3), used=used, me=holder(ME, 2))
                for need in range(1, 140, 9):
                    if (claim := there.claim(gib(need), beside=False)) is not None:
                        assert used * GIB - there.idle + claim <= TOTAL


def test_what_wider_fixtures_keep_is_a_part_of_their_own_test_and_of_no_other() -> None:
    mine = holder(ME, 20.5)
    assert card(used=20.5, me=mine).claim(gib(30), beside=False) == 30 * GIB + CONTEXT
    assert card(used=20.5, me=mine).claim(gib(5), beside=False) == 20.5 * GIB  # never less than it has already
    there = card(holder(OTHER, 20.5), used=20.5, listed={OTHER: 20.5})
    assert there.claim(gib(119), beside=False) == 119 * GIB + CONTEXT
    assert there.claim(gib(119.1), beside=False) is None


def test_ranks_come_beside_what_the_worker_keeps() -> None:
    mine = holder(ME, 20.5)
    assert card(used=20.5, me=mine).claim(gib(30), beside=True) == 50.5 * GIB + CONTEXT


class TestShares:
    def test_a_share_is_of_what_others_leave(self) -> None:
        assert card(used=20).claim(Share(4), beside=False) == 30 * GIB

    def test_as_many_shares_as_there_are_parts(self) -> None:
        first = holder(OTHER, 0, 70)
        assert card(first, used=60, listed={OTHER: 60}).claim(Share(2), beside=False) == 70 * GIB
        assert card(first, holder(THIRD, 0, 70), used=60, listed={OTHER: 60}).claim(Share(2), beside=False) is None

    def test_all_of_it_is_what_ours_do_not_keep(self) -> None:
        there = card(holder(OTHER, 3.5), used=9, listed={OTHER: 4})
        assert there.claim(Share(1), beside=False) == 131 * GIB  # 140 less 5 of a stranger, less 4 that gw20 has

    def test_all_of_it_is_had_while_nobody_runs(self) -> None:
        assert card(holder(OTHER, 0.5, 1), used=1).claim(Share(1), beside=False) is None

    def test_beside_all_of_it_nobody_runs(self) -> None:
        there = card(holder(OTHER, 0.5, 139.5), used=10, listed={OTHER: 10}, me=holder(ME, 0.5))
        assert there.claim(gib(1), beside=False) is None

    def test_cards_of_unknown_size_are_had_as_wholes(self) -> None:
        unknown = Device("MIG-1", "", 1)

        def claim(*others: Holder) -> int | None:
            return Card("0", unknown, 0, lambda: None, holder(ME), others, lambda pid, among: None).claim(
                Share(1), beside=True
            )

        assert claim() == 1
        assert claim(Holder(OTHER, "", cards={"MIG-1": Hold(claim=1)})) is None


def test_the_driver_is_not_asked_for_processes_while_there_is_room() -> None:
    asked: list[str] = []

    def listed() -> Mapping[int, int]:
        asked.append("asked")
        return {}

    others: Sequence[Holder] = [holder(OTHER, 0.5, 60)]
    there = Card("0", Device("c", "", TOTAL), 40 * GIB, listed, holder(ME), others, lambda pid, among: None)
    assert there.claim(gib(16), beside=False) is not None
    assert not asked
    assert there.claim(gib(70), beside=False) is None
    assert asked


def test_who_waits_will_fit_or_not() -> None:
    waiting = Holder(OTHER, "", cards={"c": Hold(idle=10 * GIB)}, want=Want("", 130 * GIB, 1, ("c",), 0.0))
    assert card(waiting, holder(THIRD, 5, 90), used=15, listed={OTHER: 10, THIRD: 5}).will_fit(waiting)
    assert not card(waiting, holder(THIRD, 45, 90), used=55, listed={OTHER: 10, THIRD: 45}).will_fit(waiting)


def test_what_is_in_the_way_is_ours_or_a_strangers() -> None:
    ours = card(holder(OTHER, 60), used=60, listed={OTHER: 60})
    strangers = card(used=60, listed={STRANGER: 60})
    assert ours.is_kept_from(100 * GIB)
    assert not strangers.is_kept_from(100 * GIB)
    assert not ours.is_kept_from(10 * GIB)
