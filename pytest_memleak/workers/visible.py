"""Which cards the caller of a run may use, as CUDA_VISIBLE_DEVICES says, and which of them each worker gets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_memleak.errors import BadInput
from pytest_memleak.workers.driver import Device

VARIABLE = "CUDA_VISIBLE_DEVICES"
ORDER = "CUDA_DEVICE_ORDER"
_END = ("-1", "none", "nodevfiles")
"""CUDA sees nothing of what comes after. The last is Slurm's, for jobs that have asked for no GPU."""


@dataclass(frozen=True)
class Visible:
    """One card of the caller's."""

    name: str
    """As CUDA_VISIBLE_DEVICES names it, for whoever is to see this card alone."""
    device: Device | None
    """None where the driver's readings are not its own: a slice of a card (MIG), or it is not known which it is."""

    @property
    def key(self) -> str:
        return self.name if self.device is None else self.device.key


def callers(devices: Sequence[Device], named: Sequence[str] | None = None) -> tuple[Visible, ...]:
    """The cards that this process may use; `named`: as they were called before it was given one of them."""
    text = os.environ.get(VARIABLE) if named is None else ",".join(named)
    return visible(text, devices, by_bus=os.environ.get(ORDER) == "PCI_BUS_ID")


def visible(text: str | None, devices: Sequence[Device], by_bus: bool = False) -> tuple[Visible, ...]:
    """What a value of the variable means; unset, all cards. A name that CUDA would silently stop at is an error.

    `by_bus`: CUDA numbers cards as the driver does. By default it begins with the fastest, which makes no difference
    where all are of one kind; where they are not, nobody here can tell which card a number means. Cards of which the
    driver tells nothing are left out.
    """
    numbered = _numbered(devices, by_bus)
    if text is None:
        if any(device.trouble for device in devices):  # by names that hold, whether or not CUDA counts what is left out
            return tuple(Visible(device.key, _whole(device)) for device in devices if not device.trouble)
        return tuple(Visible(name, _whole(device)) for name, device in numbered.items())
    found: list[Visible] = []
    listed = text.strip().removesuffix(",")
    for name in (part.strip() for part in listed.split(",")) if listed else ():
        if name.lower() in _END:
            break
        device = _meant(name, text, numbered, devices)
        if device is not None and device.trouble:
            continue
        one = Visible(name, _whole(device))
        if any(one.key == other.key for other in found):
            raise BadInput(f"{VARIABLE}={text!r} names {name!r} twice, and CUDA then shows no card: name it once")
        found.append(one)
    return tuple(found)


def _numbered(devices: Sequence[Device], by_bus: bool) -> dict[str, Device | None]:
    """Which card each number means to CUDA; None where that is not known."""
    alike = by_bus or len({device.name for device in devices if device.name}) <= 1
    # Nobody has asked CUDA whether it counts a card that is lost.
    lost = next((number for number, device in enumerate(devices) if not device.key), len(devices))
    return {str(number): device if alike and number <= lost else None for number, device in enumerate(devices)}


def _whole(device: Device | None) -> Device | None:
    return None if device is None or device.sliced else device


def _meant(name: str, text: str, numbered: dict[str, Device | None], devices: Sequence[Device]) -> Device | None:
    if name in numbered:
        return numbered[name]
    if name.startswith("MIG-"):
        return None
    matching = [device for device in devices if name.startswith("GPU-") and device.key.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    there = ", ".join(numbered) or "none"
    why = "several cards' names begin so" if matching else f"no card has that name; there are {there}"
    raise BadInput(f"{VARIABLE}={text!r}: {name!r}: {why}. Correct it, or leave the cards alone (--memleak-share=off)")


def sharers(cards: int, workers: int, index: int) -> int:
    """How many workers have the card of this index, where they are dealt out in turn."""
    return workers // cards + (index < workers % cards)
