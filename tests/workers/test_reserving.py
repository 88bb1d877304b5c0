"""Reservations of real processes on cards that are a file: waiting, dying, standing still, several cards at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.workers import own, queueing, reserving
from pytest_memleak.workers.fitting import CONTEXT
from pytest_memleak.workers.holders import Holder, Want
from pytest_memleak.workers.need import Bytes, Need, Share
from pytest_memleak.workers.reserving import Reservations
from pytest_memleak.workers.visible import Visible, visible
from tests.workers.fake_cards import GIB, FakeCards

SPAWN = multiprocessing.get_context("spawn")


def gib(count: float) -> Bytes:
    return Bytes(round(count * GIB), "the test")


@pytest.fixture
def cards(tmp_path: Path) -> FakeCards:
    return FakeCards.make(tmp_path / "cards.json", 100 * GIB, 100 * GIB)


@pytest.fixture
def make(cards: FakeCards) -> Iterator[Callable[[str], Reservations]]:
    made: list[Reservations] = []

    def one(worker: str) -> Reservations:
        made.append(Reservations(cards, ["GPU-0f00"], worker))
        return made[-1]

    yield one
    for reservations in made:
        reservations.close()


def of(cards: FakeCards, text: str = "0") -> tuple[Visible, ...]:
    return visible(text, cards.devices())


def refused(reservations: Reservations, need: Need, among: tuple[Visible, ...], patience: float = 0.0) -> str:
    with pytest.raises(Unavailable) as error:
        reservations.take("test_late", need, among, patience)
    return str(error.value)


def test_who_does_not_fit_waits_in_vain_and_is_told_who_holds_it(
    cards: FakeCards, make: Callable[[str], Reservations]
) -> None:
    cards.allocate("GPU-0f00", 7 * GIB, pid=1)
    make("gw0").take("test_it.py::test_early", gib(60), of(cards), 0.0)
    told = refused(make("gw1"), gib(40), of(cards))
    assert told.startswith("it waited 0 s for 40 GiB (the test); card 0 (Fake H200): ")
    assert f"gw0 (pid {os.getpid()}) has 60.50 GiB for test_it.py::test_early" in told
    assert "processes that are not of these test runs have 7 GiB" in told
    assert told.endswith("Raise --memleak-card-timeout if that is not too long, or use fewer workers")


def test_what_is_given_back_is_there_for_others(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    first, second = make("gw0"), make("gw1")
    first.take("test", gib(60), of(cards), 0.0)
    refused(second, gib(60), of(cards))
    first.give_back()
    assert second.take("test", gib(60), of(cards), 0.0).names == ("0",)


def test_what_it_waited_for_is_told(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    first, second = make("gw0"), make("gw1")
    assert first.take("test", Share(1), of(cards), 0.0).waited_for == ""
    timer = threading.Timer(0.3, first.give_back)
    timer.start()
    taken = second.take("test", gib(60), of(cards), 30.0)
    timer.join()
    assert taken.waited > 0
    assert "gw0" in taken.waited_for
    assert "all of it for test" in taken.waited_for or "100 GiB for test" in taken.waited_for


def test_more_than_the_card_has_is_an_error_at_once(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    told = refused(make("gw0"), gib(100), of(cards))
    assert told == (
        "the test: the test wants 100 GiB, and card 0 (Fake H200) has 100 GiB, of which a context takes 512 MiB: run "
        "it on a larger card, or let it say that it needs less"
    )


def test_several_cards_are_had_together_or_not_at_all(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    both = of(cards, "1,0")
    first, second = make("gw0"), make("gw1")
    first.take("test", gib(60), of(cards, "1"), 0.0)
    with pytest.raises(Unavailable):
        second.take("two", gib(60), both, 0.0, count=2, beside=True)
    make("gw2").take("test", gib(60), of(cards, "0"), 0.0)  # of which the two in vain have nothing
    first.give_back()
    with pytest.raises(Unavailable, match=r"2 × 60 GiB"):
        second.take("two", gib(60), both, 0.0, count=2, beside=True)
    assert second.take("two", gib(30), both, 0.0, count=2, beside=True).names == ("1", "0")


def test_one_of_several_is_the_emptiest(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    make("gw0").take("test", gib(10), of(cards, "0"), 0.0)
    assert make("gw1").take("test", gib(10), of(cards, "0,1"), 0.0, beside=True).names == ("1",)


def test_what_stays_after_a_test_counts(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wider fixture's memory, and the context."""
    kept = {"GPU-0f00": 30 * GIB}
    monkeypatch.setattr(own, "held", lambda keys: kept)
    first = make("gw0")
    first.take("test", gib(60), of(cards), 0.0)
    first.give_back()
    monkeypatch.setattr(own, "held", lambda keys: {})
    second = make("gw1")
    told = refused(second, gib(70), of(cards))
    assert f"gw0 (pid {os.getpid()}) keeps 30 GiB between tests" in told
    second.take("test", gib(69), of(cards), 0.0)


def test_what_the_allocator_keeps_is_let_go_of_first(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"GPU-0f00": 30 * GIB}
    monkeypatch.setattr(own, "held", lambda keys: dict(kept))
    monkeypatch.setattr(own, "let_go", kept.clear)
    first = make("gw0")
    first.take("test", gib(60), of(cards), 0.0)
    first.give_back()
    make("gw1").take("test", gib(99), of(cards), 0.0)


def test_who_has_waited_for_long_is_not_overtaken_for_ever(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "PATIENCE", 0.0)
    small, large, late = make("gw0"), make("gw1"), make("gw2")
    small.take("small", gib(30), of(cards), 0.0)
    waiting = threading.Thread(target=large.take, args=("large", gib(90), of(cards), 60.0))
    waiting.start()
    _until(lambda: _wanting(late) == ["large"])
    told = refused(late, gib(30), of(cards))  # there is room, and it is not for this one
    assert f"; gw1 (pid {os.getpid()}) waits before it, for 90.50 GiB, with large. Raise" in told
    small.give_back()
    waiting.join()
    large.give_back()
    late.take("late", gib(30), of(cards), 0.0)


@pytest.mark.parametrize("strangers", [99, 20], ids=["will never have both", "will have both"])
def test_who_waits_for_two_cards_keeps_others_from_none_that_it_will_not_have(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch, strangers: int
) -> None:
    monkeypatch.setattr(queueing, "PATIENCE", 0.0)
    cards.allocate("GPU-1f00", strangers * GIB, pid=1)
    runs, both, late = make("gw0"), make("gw1"), make("gw2")
    runs.take("runs", gib(40), of(cards, "1" if strangers == 20 else "0"), 0.0)
    among = of(cards, "0,1")
    waiting = threading.Thread(target=both.take, args=("two", gib(60), among, 60.0), kwargs={"count": 2})
    waiting.start()
    _until(lambda: _wanting(late) == ["two"])
    if strangers == 99:
        late.take("late", gib(1), of(cards, "0"), 0.0)  # a worker sees no more than its own card
        late.give_back()
    else:
        told = refused(late, gib(1), of(cards, "0"))
        assert f"gw1 (pid {os.getpid()}) waits before it, for 2 × 60.50 GiB, with two" in told
    cards.allocate("GPU-1f00", -strangers * GIB, pid=1)
    runs.give_back()
    waiting.join()


def test_a_card_that_is_lost_is_an_error_and_keeps_nobody_from_others(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "PATIENCE", 0.0)
    runs, both, late = make("gw0"), make("gw1"), make("gw2")
    runs.take("runs", gib(50), of(cards, "1"), 0.0)
    with both._ledger.turn("a test", 60.0):
        both._ledger.write(Holder(1, "gw1", want=Want("two", 60 * GIB, 2, ("GPU-0f00", "GPU-1f00"), 0.0)))
    cards.lose("GPU-1f00")
    late.take("late", gib(30), of(cards, "0"), 0.0)
    assert refused(make("gw3"), gib(1), of(cards, "1")) == "card GPU-1f00 is lost"


def test_who_waits_for_what_others_keep_is_overtaken(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the one who keeps it could never come to the end of its own tests."""
    monkeypatch.setattr(queueing, "PATIENCE", 0.0)
    keeper, large = make("gw0"), make("gw1")
    _keep(keeper, 50, monkeypatch)
    waiting = threading.Thread(target=large.take, args=("large", gib(90), of(cards), 60.0))
    waiting.start()
    _until(lambda: _wanting(keeper) == ["large"])
    keeper.take("next", gib(60), of(cards), 0.0)
    _keep(keeper, 0, monkeypatch)
    waiting.join()


def test_two_that_stand_in_each_others_way_do_not_wait_for_ever(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps half of the card in a wider fixture, and wants more. The one that came last is an error."""
    first, second = make("gw0"), make("gw1")
    _keep(first, 45, monkeypatch)
    _keep(second, 45, monkeypatch)
    got: list[str] = []

    def want() -> None:
        first.take("first", gib(80), of(cards), 60.0)
        got.append("first")

    waiting = threading.Thread(target=want)
    waiting.start()
    _until(lambda: _wanting(second) == ["first"])
    told = refused(second, gib(80), of(cards), patience=60.0)
    assert "(waits itself, with first)" in told
    assert told.endswith("let wider fixtures hold less, or use fewer workers")
    assert not got
    _keep(second, 0, monkeypatch)
    waiting.join()
    assert got == ["first"]


def test_an_interrupt_while_waiting_leaves_nobody_waiting(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("gw0"), make("gw1")
    first.take("test", Share(1), of(cards), 0.0)

    def interrupted(seconds: float) -> None:
        assert _wanting(first) == ["test_late"]
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second.take("test_late", gib(1), of(cards), 60.0)
    assert _wanting(first) == []


def test_an_interrupt_right_after_all_was_had_leaves_nothing_taken(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make("gw0"), make("gw1")
    _interrupt_after(first._ledger, "write", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        first.take("test", gib(60), of(cards), 0.0)
    second.take("test", gib(99), of(cards), 0.0)


@pytest.mark.parametrize("where", ["let_go", "turn", "write"])
def test_an_interrupt_while_giving_back_leaves_nothing_taken(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first, second = make("gw0"), make("gw1")
    first.take("test", gib(60), of(cards), 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(own if where == "let_go" else first._ledger, where, _interrupt)
        with pytest.raises(KeyboardInterrupt):
            first.give_back()
    second.take("test", gib(99), of(cards), 0.0)
    second.give_back()
    first.take("test", gib(99), of(cards), 0.0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _interrupt_after(of_whom: object, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first time that it is called; afterwards it is as it was."""
    really = getattr(of_whom, name)

    def interrupted(*args: object) -> None:
        monkeypatch.setattr(of_whom, name, really)
        really(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(of_whom, name, interrupted)


def test_one_whose_turn_does_not_end_keeps_nobody_for_ever(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may hang on a sick card. Whoever gives back meanwhile has given back."""
    monkeypatch.setattr(reserving, "_SHORT", 0.01)
    first, second, hangs = make("gw0"), make("gw1"), make("gw2")
    first.take("first", gib(60), of(cards), 0.0)
    with hangs._turn("hangs", 60.0):
        told = refused(second, gib(60), of(cards))
        assert told.startswith(f"gw2 (pid {os.getpid()}), with hangs looks for a card, and has not come to an end")
        first.give_back()
    assert second.take("second", gib(60), of(cards), 0.0).names == ("0",)
    with hangs._turn("", 60.0) as others:
        assert [(one.worker, one.test) for one in others] == [("gw1", "second")]


def test_a_forked_child_is_named_by_its_own_number(
    cards: FakeCards, make: Callable[[str], Reservations], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be ended; its parent is the worker."""
    monkeypatch.setattr(reserving, "_SHORT", 0.01)
    forked, late = make("gw0"), make("gw1")
    child = os.getpid() + 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: child)
        with forked._turn("hangs", 60.0):
            assert refused(late, gib(1), of(cards)).startswith(f"gw0 (pid {child}), with hangs looks for a card")


def _keep(reservations: Reservations, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this one keeps so much between its tests."""
    kept = {"GPU-0f00": count * GIB} if count else {}
    monkeypatch.setattr(reservations, "_held", lambda: kept)
    reservations.give_back()


def _wanting(seen_by: Reservations) -> list[str]:
    with seen_by._ledger.turn("a test", 60.0) as others:
        return [one.want.test for one in others if one.want is not None]


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def _work(file: str, worker: int, seed: int, count: int, results: multiprocessing.Queue[str]) -> None:
    """A worker's tests: each reserves, takes what it has reserved of the card, and lets go of it."""
    reserving.POLL = 0.005
    cards = FakeCards(Path(file))
    reservations, numbers = Reservations(cards, [], f"gw{worker}"), random.Random(seed)
    for number in range(count):
        both = numbers.random() < 0.3
        need = gib(numbers.choice([2, 16, 40, 80]))
        among = of(cards, "0,1" if both else str(worker % 2))
        reservations.take(f"test[{number}]", need, among, 120.0, count=2 if both else 1, beside=both)
        for one in among:
            cards.allocate(one.key, need.bytes)
        time.sleep(numbers.random() / 200)
        if worker == 0 and number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        for one in among:
            cards.allocate(one.key, -need.bytes)
        reservations.give_back()
    reservations.close()
    results.put(f"gw{worker}")


@contextmanager
def _processes(count: int, file: Path, tests: int) -> Iterator[multiprocessing.Queue[str]]:
    results: multiprocessing.Queue[str] = SPAWN.Queue()
    workers = [SPAWN.Process(target=_work, args=(str(file), one, one, tests, results)) for one in range(count)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
        yield results
    finally:
        for worker in workers:
            worker.kill()


def test_four_workers_on_two_cards_never_run_out_of_memory_and_all_end(cards: FakeCards, tmp_path: Path) -> None:
    """Some tests want both cards, and the first worker is killed with one of them in its hands."""
    with _processes(4, tmp_path / "cards.json", 15) as results:
        ended = {results.get(timeout=10) for _ in range(3)}
    assert ended == {"gw1", "gw2", "gw3"}
    assert max(cards.most_at_once(key) for key in ("GPU-0f00", "GPU-1f00")) > 1
    assert cards.used("GPU-0f00") == cards.used("GPU-1f00") == 0


def test_a_context_counts_from_the_first_test_on(cards: FakeCards, make: Callable[[str], Reservations]) -> None:
    make("gw0").take("test", Bytes(100 * GIB - 2 * CONTEXT - GIB, ""), of(cards), 0.0)
    make("gw1").take("test", gib(1), of(cards), 0.0)
    assert "for test" in refused(make("gw2"), Bytes(1, ""), of(cards))
