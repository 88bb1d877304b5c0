"""GPUs for ranks: all that are needed or none, and free again whatever became of who had them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.ranks import cards


@pytest.fixture(autouse=True)
def own_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(cards, "_POLL", 0.01)


def test_each_card_is_given_once() -> None:
    with cards.reserved(2, "0123", 1.0) as first, cards.reserved(2, "0123", 1.0) as second:
        assert sorted([*first, *second]) == ["0", "1", "2", "3"]


def test_who_wants_more_than_are_free_waits_and_holds_none() -> None:
    with cards.reserved(1, "01", 1.0):
        with pytest.raises(Unavailable, match=r"2 of the GPUs 0, 1 did not become free"), cards.reserved(2, "01", 0.05):
            pass
        with cards.reserved(1, "01", 0.0) as other:  # the one that two would have taken is free
            assert other == ("1",)
    with cards.reserved(2, "01", 0.0):
        pass


def test_two_that_want_all_come_to_their_turn() -> None:
    had: list[tuple[str, ...]] = []

    def want() -> None:
        for _ in range(5):
            with cards.reserved(2, "01", 30.0) as both:
                had.append(both)

    threads = [threading.Thread(target=want) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert had == [("0", "1")] * 15


def test_a_worker_that_is_killed_gives_back_what_it_had(tmp_path: Path) -> None:
    text = (
        "import time; from pytest_memleak.ranks import cards\n"
        "with cards.reserved(2, '01', 5.0): print('has', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has\n"
    with pytest.raises(Unavailable), cards.reserved(1, "01", 0.05):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with cards.reserved(2, "01", 5.0) as both:
        assert both == ("0", "1")


def test_names_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert cards.here() == ["5", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert cards.here() == ["0", "1"]
