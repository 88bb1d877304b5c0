"""The card a test runs on: a real accelerator, a simulated one, or the CPU standing in for one."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Protocol

import torch

from pytest_memleak import room
from pytest_memleak.budget.sizes import format_size
from pytest_memleak.cards.probe import accelerator_seen
from pytest_memleak.errors import Unavailable
from pytest_memleak.events.recording import Recording
from pytest_memleak.meters import shared
from pytest_memleak.meters.gauge import SharedGauge
from pytest_memleak.plan import Cap
from pytest_memleak.records.record import CardInfo
from pytest_memleak.room import Room


class Card(Protocol):
    backend: str
    device: str
    """Where a test puts its tensors: ``cuda:0``, ``cpu``."""

    @property
    def total(self) -> int:
        """Bytes, without a cap."""

    def begin(self) -> None:
        """A test begins on it."""

    def gauges(self) -> list[SharedGauge]:
        """The gauges of its devices."""

    def driver_gauges(self) -> list[SharedGauge]:
        """What its driver sees of each device, if there is one."""

    def capped(self, cap: Cap) -> contextlib.AbstractContextManager[None]:
        """The card is that big until the end."""

    def room(self, index: int, cap: Cap | None) -> Room | None:
        """How much of a device could be had for one more request; None where it does not tell. `cap` is in force."""

    def recordings(self) -> list[Recording]:
        """What can be recorded of its devices, each by one; empty where recording is not to be had."""

    def doubt(self, error: BaseException | None = None) -> str | None:
        """Why a test that ran on it since `begin` may have gone another way than on a real card, or None.

        `error` is what the test ended with.
        """

    def remarks(self) -> tuple[str, ...]:
        """What else is to be said of that test."""

    def info(self, cap: Cap | None) -> CardInfo:
        """What reports say of it."""


class _OfThisMachine:
    """What is there: what a program reads from it is true."""

    def begin(self) -> None:
        """Nothing to do."""

    def doubt(self, error: BaseException | None = None) -> str | None:
        return None

    def remarks(self) -> tuple[str, ...]:
        return ()


class RealCard(_OfThisMachine):
    """The accelerator that torch found, with all of its visible devices."""

    backend = "real"

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.device = f"{kind}:0"
        self.count = torch.accelerator.device_count()

    @property
    def total(self) -> int:
        return int(torch.get_device_module(self.kind).get_device_properties(0).total_memory)

    def gauges(self) -> list[SharedGauge]:
        return [shared.accelerator(self.kind, index) for index in range(self.count)]

    def room(self, index: int, cap: Cap | None) -> Room | None:
        return room.of_cuda(index, cap) if self.kind == "cuda" else room.of_other(self.kind, index)

    def recordings(self) -> list[Recording]:
        if self.kind != "cuda":
            return []
        from pytest_memleak.events.cuda_history import CudaRecording

        return [CudaRecording(index) for index in range(self.count)]

    def driver_gauges(self) -> list[SharedGauge]:
        return [shared.driver(index) for index in range(self.count)] if self.kind == "cuda" else []

    def capped(self, cap: Cap) -> contextlib.AbstractContextManager[None]:
        if self.kind != "cuda":
            raise Unavailable(f"{cap.source}: caps hold on CUDA and ROCm only so far, and this card is {self.kind}")
        from pytest_memleak.cards.capping import capped

        return capped(cap, range(self.count))

    def info(self, cap: Cap | None) -> CardInfo:
        return CardInfo(
            backend=self.backend,
            name=str(torch.get_device_module(self.kind).get_device_name(0)),
            devices=tuple(f"{self.kind}:{index}" for index in range(self.count)),
            total=self.total,
            cap=cap.bytes if cap else None,
            enforcement=_real_enforcement(cap),
        )


def _real_enforcement(cap: Cap | None) -> str:
    if cap is None:
        return ""
    return "enforced on reserved memory" + (" and told to the program" if cap.told else ", not told to the program")


class CpuCard(_OfThisMachine):
    """The CPU, with real values: its memory is that of torch's CPU tensors."""

    backend = "cpu"
    device = "cpu"

    def __init__(self, instead: str = "") -> None:
        self._instead = instead
        """Why it is not the simulated card that a cap without a GPU asks for."""

    @property
    def total(self) -> int:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def gauges(self) -> list[SharedGauge]:
        return [shared.cpu_tensors()]

    def room(self, index: int, cap: Cap | None) -> Room | None:
        return None

    def recordings(self) -> list[Recording]:
        return shared.cpu_recordings()

    def driver_gauges(self) -> list[SharedGauge]:
        return []

    @contextlib.contextmanager
    def capped(self, cap: Cap) -> Iterator[None]:
        tensors = shared.cpu_memory()
        held = tensors.now()["allocated"]
        if held > cap.bytes:
            raise Unavailable(
                f"{cap.source}: CPU tensors of {format_size(held)} are alive before the test begins, more than its cap "
                f"of {format_size(cap.bytes)}: release what wider fixtures or earlier tests hold, or raise the cap"
            )
        if not tensors.can_enforce:
            yield  # nothing here can refuse: the readings are held against the cap at the end
            return
        room = cap.bytes if cap.free is None else min(cap.bytes, held + cap.free)
        tensors.set_cap(room)
        try:
            yield
        finally:
            tensors.set_cap(None)

    def info(self, cap: Cap | None) -> CardInfo:
        how = "enforced" if shared.cpu_memory().can_enforce else "judged at the end"
        return CardInfo(
            backend=self.backend,
            name="CPU",
            devices=("cpu",),
            total=self.total,
            cap=cap.bytes if cap else None,
            enforcement=f"{how} on CPU tensors" if cap else "",
            instead=self._instead,
        )


def choose(backend: str, cap: Cap | None = None, cards: str = "") -> Card:
    """The card for `--gpu-backend`. *auto*: a real one if there is one; without, a cap means a simulated one.

    `cards` names what is to be simulated. The simulated card is not switched on here, and once it is, it is the card.
    """
    if backend == "cpu":
        return CpuCard()
    from pytest_memleak.cards.simulated.profiles import cards_of

    if not _simulated() and backend != "simulated":
        if found := torch.accelerator.is_available() and torch.accelerator.current_accelerator():
            return RealCard(found.type)
        if backend == "real":
            raise Unavailable(
                f"--gpu-backend=real, but torch {torch.__version__} finds no accelerator: {_why_no_accelerator()}"
            )
        if cap is None:
            return CpuCard()
    try:
        from pytest_memleak.cards.simulated.card import SimulatedCard
        from pytest_memleak.cards.simulated.process import simulation_of

        return SimulatedCard(simulation_of(cards_of(cards)), named=bool(cards))
    except Unavailable as reason:
        if backend == "simulated":
            raise
        return CpuCard(instead=str(reason))


def _simulated() -> bool:
    process = sys.modules.get("pytest_memleak.cards.simulated.process")
    return process is not None and process.in_force() is not None


def _why_no_accelerator() -> str:
    if not accelerator_seen():
        return "this machine shows none; use --gpu-backend=auto or simulated to predict what one would do"
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "a device is there, but this torch is a CPU build: install one with CUDA or ROCm"
    return "a device is there, but torch cannot use it: see what `torch.cuda.init()` says, and CUDA_VISIBLE_DEVICES"
