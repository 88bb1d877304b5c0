"""The simulated card, on and off: its memory, its kernels, and its face."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from pytest_memleak.cards.allocator.addresses import EXPANDABLE, LOWEST, TOP
from pytest_memleak.cards.allocator.allocator import Allocator
from pytest_memleak.cards.allocator.refusal import CardFull
from pytest_memleak.cards.allocator.settings import from_environment
from pytest_memleak.cards.simulated import environment, faces, features, library, readings, storages, torch_inside
from pytest_memleak.cards.simulated.choices import Choices
from pytest_memleak.cards.simulated.margins import Margins
from pytest_memleak.cards.simulated.paged import paged_states
from pytest_memleak.cards.simulated.presumptions import Presumptions
from pytest_memleak.cards.simulated.profiles import MOST_CARDS, Profile
from pytest_memleak.cards.simulated.unknowns import PLACEHOLDER, Asked, Unknowns
from pytest_memleak.errors import Unavailable
from pytest_memleak.events.callbacks import called_by_native_code
from pytest_memleak.events.recording import Alarm
from pytest_memleak.plan import Cap

# A place in the address space that no system uses by itself; each card has a terabyte there, and as much for what is
# mapped piece by piece.
_SPACE = 0x2000_0000_0000
_SPACE_OF_A_CARD = 1 << 40
_SPACE_OF_PIECES = 1 << 40
# What of a driver's addresses can be had: from where on, and how much.
_SPACES = ((LOWEST, TOP - LOWEST), (EXPANDABLE, _SPACE_OF_PIECES // 2))

_BAD_FORK = (
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the 'spawn' start "
    "method"
)
"""As torch says it."""


@dataclass
class _Told:
    """A card that a program is told to be smaller."""

    room: int
    """What may be reserved there at most."""
    total: int
    """The size that is told."""
    fraction: float = 1.0
    """What the program itself has set, of that size."""


class Simulation:
    """One per process: tensors may outlive the tests that the card was there for."""

    cuda_version = "13.0"

    def __init__(self, cards: Sequence[Profile]) -> None:
        self._native = library.load()
        atexit.register(self._native.memleak_card_end)
        self._ever_on = False
        self.presumptions = Presumptions()
        self._become(cards, _allocators(cards), range(len(cards)), {}, None)
        self.unknowns = Unknowns()
        self._readings = readings.patches(self.unknowns)
        self.margins = Margins(lambda index: self._allocators[index])
        self._answer = library.Answer(self._asked)
        spaces = [self._space(place) for place in self._places]  # each is wanted, whatever the others can hold
        self._holds_values = all(spaces)
        self._native.memleak_card_values(self._answer, PLACEHOLDER, self._holds_values)
        self._last_in: dict[int, Allocator | None] = {}
        """Of the places for other cards those that were used, and by whom last."""
        self._owners: dict[int, tuple[Allocator, int]] = {}
        """By the address that torch has: whose block it is, and the block's address there."""
        self._take, self._give = library.Take(self._taking), library.Give(self._giving)
        self.alarms: dict[int, Alarm] = {}
        """By device: who is to be told of a level and of refusals."""
        self._undo: contextlib.ExitStack | None = None
        if (asks_again := torch_inside.ask_again_in_children()) is not None:
            os.register_at_fork(after_in_child=asks_again)

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
            self.generators = torch_inside.default_generators(len(self.cards))
            undo.enter_context(faces.shown(self))
            undo.enter_context(storages.of_card(self._native, self.unknowns))
            undo.enter_context(readings.labelled(self._readings))
            undo.enter_context(self._choices)
            undo.enter_context(self.presumptions)
            undo.enter_context(features.refused(self))
            undo.enter_context(paged_states())
            self._undo = undo.pop_all()
        if not self._ever_on:
            self._ever_on = True
            readings.for_good()

    def off(self) -> None:
        """What is still alive stays accounted; no operation runs on it any more."""
        if self._undo is not None:
            undo, self._undo = self._undo, None
            undo.close()

    def begin_threads(self) -> None:
        """Those for backward passes on the card, which a process has that knew the card at its first backward pass."""
        if reason := self._native.memleak_card_threads():
            words = reason.decode(errors="replace").partition("\n")[0]
            raise Unavailable(f"torch runs no backward passes of a card in this process: {words}")

    @contextlib.contextmanager
    def other_cards(self, cards: Sequence[Profile]) -> Iterator[None]:
        """Until the end the process has these, empty ones, and they are on. What lives on its own is left alone.

        For all threads: none may use the cards of before meanwhile.
        """
        alarms, self.alarms = self.alarms, {}
        own = self.cards, self._allocators, self._places, self._told, self._user
        reading = contextlib.ExitStack()
        if self.is_on:  # others may have replaced the same on top of it meanwhile: that does not come and go
            reading.enter_context(readings.labelled(self._readings))
        was_on, at, streams = self.is_on, self.current(), [self.stream(index) for index in range(len(self.cards))]
        self.off()
        self._native.memleak_card_set_aside()
        try:
            with self.unknowns.set_aside(), self.presumptions.set_aside(), self.margins.set_aside():
                allocators = _allocators(cards)
                self._become(cards, allocators, self._places_for(allocators), {}, None)
                self.set_current(0)
                self.on()
                with torch_inside.generators_set_aside():
                    yield
        finally:
            self.off()
            self._native.memleak_card_take_back()
            self._become(*own)
            self.alarms = alarms
            if was_on:
                self.on()
                self.set_current(at)
                for index, stream in enumerate(streams):
                    self._native.memleak_card_set_stream(index, stream)
            reading.close()

    def _become(
        self,
        cards: Sequence[Profile],
        allocators: list[Allocator],
        places: Sequence[int],
        told: dict[int, _Told],
        user: int | None,
    ) -> None:
        self.cards = tuple(cards)
        self._allocators = allocators
        self._places = tuple(places)
        """Where in the address space each card's memory is."""
        self._told = told
        """By device."""
        self._user = user
        """The process that has taken memory there: its forked children may not use these cards."""
        self._choices = Choices(self._native, self.cards, self.presumptions)
        self.size_workspaces()
        spaces = [
            (lowest + _shift(lowest, place), lowest + _shift(lowest, place) + bytes_)
            for place in self._places
            for lowest, bytes_ in _SPACES
        ]
        self._native.memleak_card_here((ctypes.c_uint64 * (2 * len(spaces)))(*itertools.chain(*spaces)), len(spaces))

    # --- forked children, which cannot use a card that their parent has used

    def is_in_bad_fork(self) -> bool:
        return self._user is not None and self._user != os.getpid()

    def refuse_in_bad_fork(self) -> None:
        if self.is_in_bad_fork():
            raise RuntimeError(_BAD_FORK)

    def unused(self) -> None:
        """What was taken until now was nobody's."""
        self._user = None

    def _places_for(self, allocators: Sequence[Allocator]) -> list[int]:
        """Some in which nothing is alive any more, each for one."""
        found: list[int] = []
        for place in range(MOST_CARDS, 2 * MOST_CARDS):
            if len(found) == len(allocators):
                break
            if place not in self._last_in:
                holds_values = self._space(place)  # it is taken in any case
                if self._holds_values and not holds_values:
                    break
                self._last_in[place] = None
            last = self._last_in[place]
            if last is None or not last.allocated:
                found.append(place)
        if len(found) < len(allocators):
            raise Unavailable(
                "there is no room for one more simulated card: tensors of earlier ones are alive that should be "
                "released"
            )
        self._last_in.update(zip(found, allocators, strict=True))
        return found

    # --- memory

    def allocator(self, device: int | None) -> Allocator:
        return self._allocators[self.current() if device is None or device < 0 else device]

    def memory_info(self, device: int | None = None) -> tuple[int, int]:
        allocator = self.allocator(device)
        if allocator.device not in self._told:
            return allocator.free_on_card, allocator.total
        told = self._told[allocator.device]
        return max(0, min(allocator.free_on_card, told.room - allocator.reserved)), told.total

    @contextlib.contextmanager
    def telling(self, cap: Cap, rooms: dict[int, int]) -> Iterator[None]:
        """Until the end programs are told of cards as big as the cap, if they are to be told."""
        before = self._told
        self._told = {index: _Told(room, cap.bytes) for index, room in rooms.items()} if cap.told else {}
        try:
            yield
        finally:
            self._told = before

    def reset_peak(self, device: int) -> None:
        self.allocator(device).statistics.reset_peak()

    def reset_accumulated(self, device: int) -> None:
        self.allocator(device).statistics.reset_accumulated()

    def empty_cache(self) -> None:
        for allocator in self._allocators:
            allocator.empty_cache()

    def set_fraction(self, fraction: float, device: int) -> None:
        allocator = self.allocator(device)
        if (told := self._told.get(allocator.device)) is None:
            allocator.cap = int(fraction * allocator.total)
            return
        told.fraction = fraction
        allocator.cap = min(told.room, int(fraction * told.total))

    def fraction(self, device: int) -> float:
        allocator = self.allocator(device)
        if (told := self._told.get(allocator.device)) is not None:
            return told.fraction
        return 1.0 if allocator.cap is None else allocator.cap / allocator.total

    def size_workspaces(self) -> None:
        """As the environment says now; those that were taken before stay as they are."""
        for index, card in enumerate(self.cards):
            self._native.memleak_card_workspace(index, environment.workspace(os.environ, card.workspace))

    def release_workspaces(self) -> None:
        self._native.memleak_card_release_workspaces()

    # --- devices

    def current(self) -> int:
        return int(self._native.memleak_card_device())

    def set_current(self, device: int) -> None:
        if device >= len(self.cards):
            raise RuntimeError(f"CUDA error: invalid device ordinal (cuda:{device} of {len(self.cards)})")
        self._native.memleak_card_set_device(device)

    def stream(self, device: int) -> int:
        """Which of its streams this thread works on; 0 is the default one."""
        return int(self._native.memleak_card_stream(device))

    def set_stream(self, stream: int, device: int) -> None:
        self.set_current(device)
        self._native.memleak_card_set_stream(device, stream)

    def stream_of(self, tensor: torch.Tensor) -> int | None:
        """Which one its memory was taken on; None for what has none."""
        found = self.block_of(tensor)
        return None if found is None else found[0].stream_of(found[1])

    def block_of(self, tensor: torch.Tensor) -> tuple[Allocator, int] | None:
        """Whose memory it is, and the block's address there."""
        return self._owners.get(tensor.untyped_storage().data_ptr())

    def exchange(self, device: int) -> int:
        before = self.current()
        self.set_current(device)
        return before

    def properties(self, device: Any) -> SimpleNamespace:
        index = device if isinstance(device, int) else torch.device(device).index or 0
        card = self.cards[index]
        return SimpleNamespace(
            name=card.name,
            total_memory=self._told[index].total if index in self._told else card.total,
            major=card.capability[0],
            minor=card.capability[1],
            multi_processor_count=card.processors,
            is_integrated=0,
            is_multi_gpu_board=0,
            max_threads_per_multi_processor=card.threads,
            warp_size=32,
            regs_per_multiprocessor=65536,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=card.shared_memory,
            L2_cache_size=card.cache,
            gcnArchName="",
            uuid=f"simulated-{index}",
        )

    # --- what torch asks for

    @called_by_native_code
    def _asked(self, asked: int, what: bytes) -> None:
        if asked == Asked.MARGIN:
            self.margins.tell(what)
        else:
            self.unknowns.answer(asked, what)

    @called_by_native_code
    def _taking(self, size: int, device: int, stream: int) -> int:
        if self._user is None:
            self._user = os.getpid()
        elif self.is_in_bad_fork():
            self._native.memleak_card_refuse(_BAD_FORK.encode(), False)
            return 0
        allocator, alarm = self._allocators[device], self.alarms.get(device)
        try:
            address = allocator.alloc(size, stream)
        except CardFull as full:
            if alarm is not None:
                alarm.ring(allocator.allocated, size, refused=True)
            self._native.memleak_card_refuse(full.refusal.message(_torch_version()).encode(), True)
            return 0
        pointer = address + _shift(address, self._places[device])
        self._owners[pointer] = (allocator, address)
        if alarm is not None and allocator.allocated >= alarm.level:
            alarm.ring(allocator.allocated, size, refused=False)
        return pointer

    @called_by_native_code
    def _giving(self, pointer: int) -> None:
        if self.is_in_bad_fork():
            return  # the parent's: its allocator may be locked here for ever
        allocator, address = self._owners.pop(pointer)
        allocator.free(address)

    def _space(self, place: int) -> bool:
        """Whether the addresses of a card can hold values."""
        found = max(self._native.memleak_card_space(lowest + _shift(lowest, place), size) for lowest, size in _SPACES)
        if found > 1:
            raise Unavailable(
                "the simulated card needs address space, and the system refuses it: see ulimit -v, and whether "
                "another program of this process has mapped it"
            )
        return bool(found == 0)


def _allocators(cards: Sequence[Profile]) -> list[Allocator]:
    environment.check(os.environ)
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
