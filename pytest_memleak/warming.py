"""While transformers warms an allocator up: its peak is kept apart, and what is there at that moment is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from pytest_memleak.cards.card import Card
from pytest_memleak.errors import BadInput, Inconclusive
from pytest_memleak.events.recording import Recording
from pytest_memleak.plan import Cap, Plan
from pytest_memleak.room import Room
from pytest_memleak.upstream.targets import as_accelerator
from pytest_memleak.upstream.warmup import Around, WarmupSpy


class Warming:
    """Of one test: what is entered around each warm-up."""

    def __init__(self, plan: Plan, card: Card, recordings: Sequence[Recording]) -> None:
        self._card = card
        counts = plan.peak is None or plan.peak.warmup
        self._recordings = () if counts else tuple(recordings)
        """Those of a test whose peak is to be explained without the warm-up's."""
        self.hidden = False
        """A warm-up runs now that does not count."""

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.hidden = bool(self._recordings)
        for recording in self._recordings:
            recording.pause()
        try:
            with apart(self._card):
                yield
        finally:
            for recording in self._recordings:
                recording.resume()
            self.hidden = False


@contextlib.contextmanager
def apart(card: Card) -> Iterator[None]:
    """Until the end the peaks of the card's devices are a warm-up's."""
    with contextlib.ExitStack() as stack:
        for gauge in card.gauges():
            stack.enter_context(gauge.warming())
        yield


def spy_on(card: Card, cap: Cap | None, around: Around | None = None) -> WarmupSpy:
    """On the warm-ups of a card that is capped so."""

    def room_of(device: torch.device) -> Room | None:
        return card.room(device.index, cap)

    return WarmupSpy(room_of, around or (lambda: apart(card)))


@dataclass(frozen=True)
class DeviceWarmup:
    """What became of the warm-ups of one device."""

    device: str
    called: bool
    """A warm-up was called with a device map that names it."""
    asked: int = 0
    """Bytes of the largest request, or of the one that failed; negative where a negative size was asked for."""
    total: int | None = None
    cap: int | None = None
    """What the process may reserve in all; None: there is no cap."""
    free: int | None = None
    """At that moment; None: it was not called, or the device does not tell."""
    fits: bool | None = None
    """No request was refused or larger than what is free and what the cap leaves; None: that is not known."""
    refused: bool = False


class Warmups:
    """What the fixture `warmup_spy` tells: about each device, so far."""

    def __init__(self, spy: WarmupSpy, card: Card) -> None:
        self._spy = spy
        self._card = card

    @property
    def loads(self) -> int:
        """How many loads of transformers were seen."""
        return len(self._spy.loads)

    @property
    def called(self) -> bool:
        return bool(self._spy.warmups)

    @property
    def asked(self) -> int:
        """The largest request, of whichever device."""
        return max((one.asked for one in self.devices), default=0)

    @property
    def devices(self) -> list[DeviceWarmup]:
        """Each device of the card, also those that no warm-up was about."""
        named = [gauge.gauge.device for gauge in self._card.gauges() if gauge.gauge.device != "cpu"]
        seen = [device for warmup in self._spy.warmups for device in warmup.rooms]
        asked = [ask.device for ask in self._spy.asks]
        return [self._of(device) for device in dict.fromkeys([*named, *seen, *asked])]

    def __getitem__(self, device: str | int | torch.device) -> DeviceWarmup:
        if why := self._spy.missing or ("the CPU is never warmed up" if self._card.backend == "cpu" else ""):
            raise Inconclusive(f"warmup_spy[{device!r}]: {why}")
        devices = self.devices
        wanted = str(as_accelerator(device))
        found = next((one for one in devices if one.device == wanted), None)
        if found is None:
            raise BadInput(
                f"warmup_spy[{device!r}]: there is {', '.join(one.device for one in devices) or 'no device'}"
            )
        return found

    def __repr__(self) -> str:
        return f"<warm-ups of {self.loads} loads: {', '.join(map(str, self.devices))}>"

    def _of(self, device: str) -> DeviceWarmup:
        calls = [warmup for warmup in self._spy.warmups if device in warmup.rooms]
        asks = [ask for ask in self._spy.asks if ask.device == device]
        if not asks:
            room = calls[0].rooms[device] if calls else None
            return _told(device, bool(calls), room, fits=True if calls else None)
        worst = min(asks, key=lambda ask: (ask.fits is not False, ask.bytes >= 0, -ask.bytes))
        return _told(
            device,
            True,
            worst.room,
            fits=worst.fits,
            asked=worst.bytes,
            refused=any(ask.failed and ask.bytes >= 0 for ask in asks),
        )


def _told(
    device: str, called: bool, room: Room | None, *, fits: bool | None, asked: int = 0, refused: bool = False
) -> DeviceWarmup:
    if room is None:
        return DeviceWarmup(device, called, asked, fits=fits, refused=refused)
    return DeviceWarmup(device, called, asked, room.total, room.cap, room.free, fits, refused)
