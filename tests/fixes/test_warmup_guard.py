"""The reference fix of the allocator warm-up: what its environment says, and what it leaves out."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_memleak.errors import BadInput
from pytest_memleak.fixes import _warmups
from pytest_memleak.fixes._warmups import fits, is_guarded
from pytest_memleak.fixes.warmup_guard import FIX, RESERVE, SMALL_CARD, VARIABLES, mode
from pytest_memleak.room import Room
from pytest_memleak.upstream.patches import Patch
from tests.alone import run_alone

modeling: Any = pytest.importorskip("transformers.modeling_utils")

GIB = 2**30
OURS, GENERAL, GPT_OSS = VARIABLES
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_on_cards(pytester: pytest.Pytester) -> None:
    run_alone(pytester, Path(__file__).with_name("guarded.py"))


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((value, "on") for value in ("on", "enable", "1", "true", " ON ", "True")),
        *((value, "off") for value in ("off", "disable", "0", "false", "OFF")),
        *((value, "auto") for value in ("auto", "Auto", "", "  ")),
    ],
)
def test_what_a_variable_says(name: str, value: str, expected: str) -> None:
    assert mode({name: value}) == expected


def test_ours_comes_before_the_others() -> None:
    assert mode({}) == "auto"
    assert mode({OURS: "off", GENERAL: "on", GPT_OSS: "on"}) == "off"
    assert mode({OURS: "", GENERAL: "off", GPT_OSS: "on"}) == "off"
    assert mode({OURS: "auto", GENERAL: "off"}) == "auto"


@pytest.mark.parametrize("name", VARIABLES)
def test_what_cannot_be_read_is_said_before_any_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "maybe")
    with pytest.raises(BadInput, match=rf"{name}='maybe' is not one of .*on.*off.*auto"), FIX.fixed():
        pass


class Calls:
    """Instead of transformers' own: which map it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rooms: dict[torch.device, Room | None]) -> None:
        self.maps: list[Any] = []
        self.asked: list[torch.device] = []
        monkeypatch.setattr(modeling, "caching_allocator_warmup", self.note)
        monkeypatch.setattr(modeling, "get_total_byte_count", self.count, raising=False)
        monkeypatch.setattr(_warmups, "room_of", self.room)
        self.rooms = rooms
        monkeypatch.setattr("pytest_memleak.upstream.targets._kind", lambda: "cuda")

    def room(self, device: torch.device) -> Room | None:
        self.asked.append(device)
        return self.rooms[device]

    def note(self, model: object, expanded_device_map: object, *more: object, **named: object) -> None:
        self.maps.append(expanded_device_map)

    def count(self, needs: dict[str, float], places: dict[str, torch.device], quantizer: object) -> dict[Any, int]:
        counted = dict.fromkeys(places.values(), 0)
        for name, device in places.items():
            counted[device] += int(needs[name] * GIB)
        return counted


def room(total: float = 80, free: float | None = None, cap: float | None = None, allocated: float = 0) -> Room:
    there = total - allocated if free is None else free
    return Room(int(total * GIB), None if cap is None else int(cap * GIB), int(allocated * GIB), int(there * GIB))


# What reviewers found wrong with guards before this one, and what it must do instead.
DECISIONS = {
    "a card that is free": (room(24), 18.9, True),
    "a small model on a card of 24 GiB": (room(24), 1, True),
    "a cap on a large card": (room(80, cap=16), 18.9, False),
    "a small model under that cap": (room(80, cap=16), 11.85, True),
    "a neighbour has left 6 GiB of a large card": (room(80, free=6), 18.9, False),
    "a cap that is used up": (room(80, cap=16, allocated=12), 4, False),
    "to the reserve": (room(24, free=10 + RESERVE / GIB), 10, True),
    "one byte into the reserve": (room(24, free=10 + (RESERVE - 1) / GIB), 10, False),
    "a card that is smaller than the reserve": (room(1), 0.1, False),
    "a small card": (room(SMALL_CARD / GIB), 0.1, False),
    "a small part of a card": (room(80, cap=SMALL_CARD / GIB), 0.1, False),
    "one that is a little larger": (room(SMALL_CARD / GIB + 0.1), 0.1, True),
    "a device that does not tell": (None, 18.9, True),
}


@pytest.mark.parametrize(("there", "need", "kept"), DECISIONS.values(), ids=DECISIONS)
def test_when_a_warm_up_is_kept(there: Room | None, need: float, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {FIRST: there})
    with FIX.fixed():
        modeling.caching_allocator_warmup({"a": need}, {"a": "cuda:0"}, None)
    assert calls.maps == ([{"a": "cuda:0"}] if kept else [])


@pytest.mark.parametrize("target", ["cuda:1", 1, torch.device("cuda", 1)])
def test_the_target_decides_and_not_the_current_device(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    calls = Calls(monkeypatch, {FIRST: room(80), SECOND: room(80, cap=16)})
    with FIX.fixed():
        modeling.caching_allocator_warmup({"a": 18.9}, {"a": target}, None)
    assert (calls.maps, calls.asked) == ([], [SECOND])


def test_without_an_index_the_current_device_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    calls = Calls(monkeypatch, {FIRST: room(80), SECOND: room(80, cap=16)})
    with FIX.fixed():
        modeling.caching_allocator_warmup({"a": 18.9}, {"a": "cuda"}, None)
    assert (calls.maps, calls.asked) == ([], [SECOND])


def test_devices_where_it_fits_are_warmed_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {FIRST: room(80, free=6), SECOND: room(80)})
    places = {"a": "cuda:0", "b": torch.device("cuda", 1), "c": "cpu", "d": "disk", "e": "cuda:0", "f": "meta"}
    needs = dict.fromkeys(places, 5.0)
    with FIX.fixed():
        modeling.caching_allocator_warmup(needs, places, None)
    # Of cuda:0, 10 GiB together do not fit, and 5 of one alone would not either.
    assert calls.maps == [{"b": torch.device("cuda", 1)}]


def test_a_map_without_an_accelerator_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {})
    with FIX.fixed():
        modeling.caching_allocator_warmup({"a": 1, "b": 1}, {"a": "cpu", "b": "disk"}, None)
    assert (calls.maps, calls.asked) == ([], [])


def test_xpu_as_well_as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("xpu", 0)
    calls = Calls(monkeypatch, {device: room(80, cap=16)})
    with FIX.fixed():
        modeling.caching_allocator_warmup({"a": 18.9}, {"a": "xpu:0"}, None)
    assert (calls.maps, calls.asked) == ([], [device])


def test_a_limit_on_an_xpu_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda index: (80 * GIB, 80 * GIB), raising=False)
    monkeypatch.setattr(torch.xpu, "memory_allocated", lambda index: 0, raising=False)
    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda index: 0, raising=False)
    monkeypatch.setattr(torch.xpu, "get_per_process_memory_fraction", lambda index: 0.2, raising=False)
    device = torch.device("xpu", 0)
    assert not fits(device, 18 * GIB)
    assert fits(device, 14 * GIB)


def test_the_environment_decides_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {FIRST: room(80, cap=16)})
    with FIX.fixed():
        monkeypatch.setenv(GPT_OSS, "on")
        modeling.caching_allocator_warmup({"a": 99}, {"a": "cuda:0"}, None)
        assert calls.maps == [{"a": "cuda:0"}]
        monkeypatch.setenv(OURS, "off")
        modeling.caching_allocator_warmup({"a": 0.1}, {"a": "cuda:0"}, None)
    assert (len(calls.maps), calls.asked) == (1, [])


def test_a_device_that_fails_to_tell_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(monkeypatch, {})

    def fails(device: torch.device) -> Room:
        raise NotImplementedError("no Sysman")

    monkeypatch.setattr(_warmups, "room_of", fails)
    with caplog.at_level(logging.WARNING), FIX.fixed():
        modeling.caching_allocator_warmup({"a": 18.9}, {"a": "cuda:0"}, None)
    assert calls.maps == [{"a": "cuda:0"}]
    assert "cuda:0 does not tell its memory" in caplog.text
    assert "no Sysman" in caplog.text


def test_what_is_no_matter_of_memory_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch, {})

    def fails(device: torch.device) -> Room:
        raise ZeroDivisionError

    monkeypatch.setattr(_warmups, "room_of", fails)
    with FIX.fixed(), pytest.raises(ZeroDivisionError):
        modeling.caching_allocator_warmup({"a": 18.9}, {"a": "cuda:0"}, None)


def test_one_guard_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {FIRST: room()})
    before = modeling.caching_allocator_warmup
    with FIX.fixed():
        guarded = modeling.caching_allocator_warmup
        with FIX.fixed(), Patch(modeling, "caching_allocator_warmup", _warmups.guarded):
            assert modeling.caching_allocator_warmup is guarded
        assert is_guarded(guarded)
        modeling.caching_allocator_warmup({"a": 1}, {"a": "cuda:0"}, None)
    assert len(calls.maps) == len(calls.asked) == 1
    assert modeling.caching_allocator_warmup == before
    assert not is_guarded(before)


class Weights(torch.nn.Module):
    """A model of one weight of 8 GiB in 2 bytes, for releases that count by themselves."""

    def get_parameter_or_buffer(self, name: str) -> torch.Tensor:
        return torch.empty(4 * GIB, dtype=torch.float16, device="meta")


class Quantizer:
    def get_accelerator_warm_up_factor(self) -> int:
        return 4

    def update_param_name(self, name: str) -> str:
        return name


SIGNATURES: dict[str, tuple[tuple[Any, ...], dict[str, Any], int]] = {
    "4.50": ((), {}, 8),
    "4.51": ((2,), {}, 8),
    "4.51, quantized": ((4,), {}, 4),
    "4.51, by name": ((), {"factor": 4}, 4),
    "since 4.52": ((None,), {}, 8),
    "since 4.52, quantized": ((Quantizer(),), {}, 4),
    "since 4.52, by name": ((), {"hf_quantizer": Quantizer()}, 4),
    "one that is to come": ((Quantizer(), "more"), {"later": 1}, 4),
}


@pytest.mark.parametrize(("third", "named", "need"), SIGNATURES.values(), ids=SIGNATURES)
@pytest.mark.parametrize("free", [1, 2])
def test_signatures_of_all_releases(
    third: tuple[Any, ...], named: dict[str, Any], need: int, free: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, {FIRST: room(80, free=need + free)})
    monkeypatch.delattr(modeling, "get_total_byte_count")
    with FIX.fixed():
        modeling.caching_allocator_warmup(Weights(), {"a": "cuda:0"}, *third, **named)
    assert bool(calls.maps) is (free == 2)


def test_all_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {FIRST: room(), SECOND: room(free=1)})
    with FIX.fixed():
        modeling.caching_allocator_warmup(model={"a": 1, "b": 1}, expanded_device_map={"a": "cuda:0", "b": "cuda:1"})
    assert calls.maps == [{"a": "cuda:0"}]


@pytest.fixture(autouse=True)
def one_guard_at_most() -> Iterator[None]:
    yield
    assert not is_guarded(modeling.caching_allocator_warmup)
