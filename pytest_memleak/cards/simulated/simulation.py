"""The simulated card, on and off: its memory, its kernels, and its face."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from pytest_memleak.cards.allocator.addresses import EXPANDABLE, LOWEST, TOP
from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.allocator.refusal import CardFull
from pytest_memleak.cards.allocator.settings import from_environment
from pytest_memleak.cards.simulated import faces, library, readings
from pytest_memleak.cards.simulated.choices import Choices
from pytest_memleak.cards.simulated.profiles import MOST_CARDS, Profile
from pytest_memleak.cards.simulated.unknowns import PLACEHOLDER, Unknowns
from pytest_memleak.errors import Unavailable

# A place in the address space that no system uses by itself; each card has a terabyte there, and as much for what is
# mapped piece by piece.
_SPACE = 0x2000_0000_0000
_SPACE_OF_A_CARD = 1 << 40
_SPACE_OF_PIECES = 1 << 40


class Simulation:
    """One per process: tensors may outlive the tests that the card was there for."""

    cuda_version = "13.0"

    def __init__(self, cards: Sequence[Profile]) -> None:
        self._native = library.load()
        atexit.register(self._native.memleak_card_end)
        self._ever_on = False
        self._become(cards, _allocators(cards), range(len(cards)))
        self.unknowns = Unknowns()
        self._answer = library.Answer(self.unknowns.answer)
        spaces = [self._space(place) for place in self._places]  # each is wanted, whatever the others can hold
        self._holds_values = all(spaces)
        self._native.memleak_card_values(self._answer, PLACEHOLDER, self._holds_values)
        self._last_in: dict[int, Allocator] = {}
        """Of the places for other cards those that were used, and by whom last."""
        self._owners: dict[int, tuple[Allocator, int]] = {}
        """By the address that torch has: whose block it is, and the block's address there."""
        self._take, self._give = library.Take(self._taking), library.Give(self._giving)
        self._undo: contextlib.ExitStack | None = None

    @property
    def is_on(self) -> bool:
        return self._undo is not None

    def on(self) -> None:
        """From now on torch has CUDA, and these cards."""
        if self._undo is not None:
            return
        with contextlib.ExitStack() as undo:
            self._native.memleak_card_on(len(self.cards), self._take, self._give)
            undo.callback(self._native.memleak_card_off)
            undo.enter_context(faces.shown(self))
            undo.enter_context(readings.labelled(self.unknowns))
            undo.enter_context(self._choices)
            self._undo = undo.pop_all()
        if not self._ever_on:
            self._ever_on = True
            readings.for_good()

    def off(self) -> None:
        """What is still alive stays accounted; no operation runs on it any more."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    @contextlib.contextmanager
    def other_cards(self, cards: Sequence[Profile]) -> Iterator[None]:
        """Until the end the process has these, empty ones, and they are on. What lives on its own is left alone."""
        own, was_on, at = (self.cards, self._allocators, self._places), self.is_on, self.current()
        known = self.unknowns.counters()
        before = [Counter(found) for found in known]
        self.off()
        self.release_workspaces()
        try:
            allocators = _allocators(cards)
            self._become(cards, allocators, [self._place_for(allocator) for allocator in allocators])
            self.unknowns.reset()
            self.set_current(0)
            self.on()
            yield
        finally:
            self.off()
            self.release_workspaces()
            self._become(*own)
            for found, earlier in zip(known, before, strict=True):
                found.clear()
                found.update(earlier)
            if was_on:
                self.on()
                self.set_current(at)

    def _become(self, cards: Sequence[Profile], allocators: list[Allocator], places: Sequence[int]) -> None:
        self.cards = tuple(cards)
        self._allocators = allocators
        self._places = tuple(places)
        """Where in the address space each card's memory is."""
        self._choices = Choices(self._native, self.cards)
        for index, card in enumerate(cards):
            self._native.memleak_card_workspace(index, card.workspace)

    def _place_for(self, allocator: Allocator) -> int:
        """One in which nothing is alive any more."""
        for place in range(MOST_CARDS, 2 * MOST_CARDS):
            last = self._last_in.get(place)
            if last is None:
                holds_values = self._space(place)  # it is taken in any case
                if self._holds_values and not holds_values:
                    break
            if last is None or not last.allocated:
                self._last_in[place] = allocator
                return place
        raise Unavailable(
            "there is no room for one more simulated card: tensors of earlier ones are alive that should be released"
        )

    # --- memory

    def allocator(self, device: int | None) -> Allocator:
        return self._allocators[self.current() if device is None or device < 0 else device]

    def memory_info(self, device: int | None = None) -> tuple[int, int]:
        allocator = self.allocator(device)
        return allocator.free_on_card, allocator.total

    def reset_peak(self, device: int) -> None:
        self.allocator(device).statistics.reset_peak()

    def reset_accumulated(self, device: int) -> None:
        self.allocator(device).statistics.reset_accumulated()

    def empty_cache(self) -> None:
        for allocator in self._allocators:
            allocator.empty_cache()

    def set_fraction(self, fraction: float, device: int) -> None:
        allocator = self.allocator(device)
        allocator.cap = int(fraction * allocator.total)

    def fraction(self, device: int) -> float:
        allocator = self.allocator(device)
        return 1.0 if allocator.cap is None else allocator.cap / allocator.total

    def release_workspaces(self) -> None:
        self._native.memleak_card_release_workspaces()

    # --- devices

    def current(self) -> int:
        return int(self._native.memleak_card_device())

    def set_current(self, device: int) -> None:
        self._native.memleak_card_set_device(device)

    def exchange(self, device: int) -> int:
        before = self.current()
        self.set_current(device)
        return before

    def properties(self, device: Any) -> SimpleNamespace:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        card = self.cards[index]
        return SimpleNamespace(
            name=card.name,
            total_memory=card.total,
            major=card.capability[0],
            minor=card.capability[1],
            multi_processor_count=card.processors,
            is_integrated=0,
            is_multi_gpu_board=0,
            max_threads_per_multi_processor=card.threads,
            warp_size=32,
            regs_per_multiprocessor=65536,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=232448,
            L2_cache_size=0,
            gcnArchName="",
            uuid=f"simulated-{index}",
        )

    # --- what torch asks for

    def _taking(self, size: int, device: int) -> int:
        try:
            allocator = self._allocators[device]
            address = allocator.alloc(size)
        except CardFull as full:
            self._native.memleak_card_refuse(full.refusal.message(_torch_version()).encode())
            return 0
        pointer = address + _shift(address, self._places[device])
        self._owners[pointer] = (allocator, address)
        return pointer

    def _giving(self, pointer: int) -> None:
        allocator, address = self._owners.pop(pointer)
        allocator.free(address)

    def _space(self, place: int) -> bool:
        """Whether the addresses of a card can hold values."""
        lowest, pieces = LOWEST + _shift(LOWEST, place), EXPANDABLE + _shift(EXPANDABLE, place)
        found = max(
            self._native.memleak_card_space(lowest, TOP - LOWEST),
            self._native.memleak_card_space(pieces, _SPACE_OF_PIECES // 2),
        )
        if found > 1:
            raise Unavailable(
                "the simulated card needs address space, and the system refuses it: see ulimit -v, and whether "
                "another program of this process has mapped it"
            )
        return bool(found == 0)


def _allocators(cards: Sequence[Profile]) -> list[Allocator]:
    settings = from_environment(os.environ)
    return [
        Allocator(card.total, others=card.context, settings=settings, device=index) for index, card in enumerate(cards)
    ]


def _shift(address: int, place: int) -> int:
    """From the addresses of a real driver, where this process has its own, to where there is nothing."""
    if address < LOWEST:
        return _SPACE + (2 * MOST_CARDS + place) * _SPACE_OF_PIECES
    return _SPACE + place * _SPACE_OF_A_CARD - LOWEST


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
