"""The caller's CUDA_VISIBLE_DEVICES, as CUDA reads it, and errors where CUDA would be silent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_memleak.errors import BadInput
from pytest_memleak.workers.driver import Device
from pytest_memleak.workers.visible import Visible, callers, sharers, visible

ALIKE = tuple(Device(f"GPU-{letter}1234", "H200", 100) for letter in "abcd")
MIXED = (*ALIKE, Device("GPU-e1234", "L4", 20))


def keys(text: str | None, devices: tuple[Device, ...] = ALIKE) -> list[str]:
    return [one.key for one in visible(text, devices)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ["GPU-a1234", "GPU-b1234", "GPU-c1234", "GPU-d1234"]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("2", ["GPU-c1234"]),
        ("3, 1", ["GPU-d1234", "GPU-b1234"]),
        ("1,-1,3", ["GPU-b1234"]),
        ("NoDevFiles", []),
        ("none", []),
        ("2,none", ["GPU-c1234"]),
        ("0,", ["GPU-a1234"]),
        ("0,2, ", ["GPU-a1234", "GPU-c1234"]),
        (",", []),
        ("GPU-d,0", ["GPU-d1234", "GPU-a1234"]),
        ("MIG-55/1/0", ["MIG-55/1/0"]),
    ],
)
def test_what_a_value_means(text: str | None, expected: list[str]) -> None:
    assert keys(text) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("4", "'4': no card has that name; there are 0, 1, 2, 3"),
        ("0,GPU-z", "'GPU-z': no card has that name"),
        ("GPU-", "'GPU-': several cards' names begin so"),
        ("0,,1", "'': no card has that name"),
        ("0,,", "'': no card has that name"),
        ("cuda:0", "'cuda:0': no card has that name"),
        ("0,GPU-a1234", "names 'GPU-a1234' twice"),
        ("-2", "'-2': no card has that name"),
    ],
)
def test_what_cannot_be_meant_is_an_error(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"CUDA_VISIBLE_DEVICES='{text}'") as error:
        visible(text, ALIKE)
    assert why in str(error.value)


def test_names_stay_as_the_caller_wrote_them() -> None:
    assert [one.name for one in visible("3,GPU-a,MIG-1", ALIKE)] == ["3", "GPU-a", "MIG-1"]


def test_of_cards_that_differ_a_number_means_nothing_unless_they_are_numbered_alike() -> None:
    """CUDA begins with the fastest, the driver with the first slot."""
    assert [one.device for one in visible("0", MIXED)] == [None]
    assert [one.device for one in visible("0", MIXED, by_bus=True)] == [MIXED[0]]
    assert [one.device for one in visible("GPU-e", MIXED)] == [MIXED[4]]


def test_slices_are_not_the_card_whatever_it_is_called() -> None:
    """CUDA sees one of them, and the driver's readings are of all the card."""
    one_sliced = (ALIKE[0], replace(ALIKE[1], sliced=True))
    for text, expected in ((None, [ALIKE[0], None]), ("1", [None]), ("GPU-b", [None])):
        assert [one.device for one in visible(text, one_sliced)] == expected


def test_a_card_of_which_nothing_is_told_is_left_out_and_the_others_keep_their_numbers() -> None:
    silent = (ALIKE[0], replace(ALIKE[1], total=0, trouble="error 3"), ALIKE[2])
    assert visible(None, silent) == (Visible("GPU-a1234", ALIKE[0]), Visible("GPU-c1234", ALIKE[2]))
    assert visible("2,1,0", silent) == (Visible("2", ALIKE[2]), Visible("0", ALIKE[0]))
    assert visible("GPU-b", silent) == ()


def test_behind_a_lost_card_a_number_means_nothing() -> None:
    """Whether CUDA counts it is not known."""
    lost = (ALIKE[0], Device("", "", 0, trouble="error 15"), ALIKE[2])
    assert visible(None, lost) == (Visible("GPU-a1234", ALIKE[0]), Visible("GPU-c1234", ALIKE[2]))
    assert visible("0,1,2", lost) == (Visible("0", ALIKE[0]), Visible("2", None))
    assert visible("GPU-c", lost) == (Visible("GPU-c", ALIKE[2]),)


def test_the_environment_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert [one.name for one in callers(ALIKE)] == ["1"]
    assert [one.name for one in callers(ALIKE, ("2", "1"))] == ["2", "1"]  # before a worker was given one of them
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert len(callers(ALIKE)) == 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert callers(MIXED)[0].device == MIXED[4]


@pytest.mark.parametrize("cards", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_each_card_is_shared_by_as_many_as_it_is_dealt_to(cards: int, workers: int) -> None:
    dealt = [worker % cards for worker in range(workers)]
    assert [sharers(cards, workers, card) for card in range(cards)] == [dealt.count(card) for card in range(cards)]
