"""GPUs for ranks: which there are. How they are shared is tested in tests/workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_memleak.errors import Unavailable
from pytest_memleak.ranks import cards
from pytest_memleak.workers import driver, reserving
from pytest_memleak.workers.need import Bytes
from pytest_memleak.workers.reserving import Reservations
from tests.workers.fake_cards import GIB, FakeCards


@pytest.fixture(autouse=True)
def two_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(driver, "find", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(reserving, "POLL", 0.005)


def names(*callers: str) -> list[str]:
    return [card.name for card in cards.here(callers or None)]


def test_names_are_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert names() == ["5", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert names() == ["0", "1"]


def test_in_a_worker_they_are_those_of_the_whole_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver_of_four = FakeCards.make(tmp_path / "cards.json", *[GIB] * 4)
    monkeypatch.setattr(driver, "find", lambda: driver_of_four)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert names() == ["3"]
    assert names("3", "1", "0") == ["3", "1", "0"]
    assert [card.key for card in cards.here(("3", "1"))] == ["GPU-3f00", "GPU-1f00"]


def test_without_a_card_for_torch_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert names() == []


def test_without_a_driver_that_tells_each_is_had_as_a_whole() -> None:
    first, second = Reservations(None), Reservations(None)
    try:
        here = cards.here()
        small = Bytes(1, "the test")
        assert first.take("test", small, here, 0.0, count=1, beside=True).names == ("0",)
        with pytest.raises(Unavailable, match="all of it for test"):
            second.take("test", small, here, 0.0, count=2, beside=True)
        assert second.take("test", small, here, 0.0, count=1, beside=True).names == ("1",)
    finally:
        first.close()
        second.close()
