"""The cards that can be simulated by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pytest_memleak.budget.sizes import UNITS, parse_size
from pytest_memleak.errors import BadInput

GIB = UNITS["GiB"]
MIB = UNITS["MiB"]
KIB = UNITS["KiB"]


@dataclass(frozen=True)
class Profile:
    """What of a card decides over memory."""

    name: str
    total: int
    """What the driver calls the card's memory: less than what is sold."""
    capability: tuple[int, int]
    processors: int
    cache: int
    """What is between the processors and the memory (L2)."""
    context: int = 552_402_944
    """What the driver and the context take before the first tensor."""

    @property
    def threads(self) -> int:
        """What one processor holds at once."""
        if self.capability == (7, 5):
            return 1024
        return 1536 if (8, 6) <= self.capability < (9, 0) or self.capability[0] == 12 else 2048

    @property
    def shared_memory(self) -> int:
        """What one block of threads can have of a processor's own memory, if it asks for more than the usual."""
        if self.capability[0] >= 9:
            return (228 if self.capability[0] < 12 else 100) * KIB - KIB
        return {(7, 5): 64 * KIB, (8, 0): 163 * KIB}.get(self.capability, 99 * KIB)

    @property
    def workspace(self) -> int:
        """What torch gives cuBLAS for each thread's products, unless the environment says otherwise."""
        return 32 * MIB if self.capability[0] == 9 else 8 * MIB + 128 * 1024


# The H200 was looked at. The totals of the others are what such cards are known to report: they vary with the driver,
# and were not read on a card for this list. Sizes of caches are from data sheets; the H200's was read.
PROFILES = {
    "rtx3090": Profile("NVIDIA GeForce RTX 3090", 25_438_126_080, (8, 6), 82, 6 * MIB),
    "rtx4090": Profile("NVIDIA GeForce RTX 4090", 25_386_352_640, (8, 9), 128, 72 * MIB),
    "t4": Profile("Tesla T4", 15_828_320_256, (7, 5), 40, 4 * MIB),
    "a10g": Profile("NVIDIA A10G", 23_836_033_024, (8, 6), 80, 6 * MIB),
    "l4": Profile("NVIDIA L4", 23_667_081_216, (8, 9), 58, 48 * MIB),
    "a100-40g": Profile("NVIDIA A100-SXM4-40GB", 42_505_273_344, (8, 0), 108, 40 * MIB),
    "a100-80g": Profile("NVIDIA A100-SXM4-80GB", 85_095_874_560, (8, 0), 108, 40 * MIB),
    "h100": Profile("NVIDIA H100 80GB HBM3", 85_045_542_912, (9, 0), 132, 50 * MIB),
    "h200": Profile("NVIDIA H200", 150_109_880_320, (9, 0), 132, 60 * MIB),
}
DEFAULT = "h200"
MOST_CARDS = 8
MOST_MEMORY = 800 * GIB
"""Somewhat less than the address space of a card."""
_SEVERAL = re.compile(r"(?P<count>\d+)x(?P<name>.*)", re.IGNORECASE)


def profile_of(name: str) -> Profile:
    if name.lower() not in PROFILES:
        raise BadInput(f"{name!r} is no card that can be simulated: {', '.join(sorted(PROFILES))}")
    return PROFILES[name.lower()]


def cards_of(text: str) -> tuple[Profile, ...]:
    """What ``simulated:…`` names: a card (``h100``), or several alike (``2xh100``); nothing is the default card."""
    count, name = several(text)
    if not 1 <= count <= MOST_CARDS:
        raise BadInput(f"{text!r}: 1 to {MOST_CARDS} cards can be simulated")
    if _is_size(name):
        raise BadInput(
            f"{name!r} is a size, and after the colon stands a card's name ({', '.join(sorted(PROFILES))}): a card of "
            f"that size is --gpu-backend=simulated with --gpu-cap={name}"
        )
    return (profile_of(name or DEFAULT),) * count


def several(text: str) -> tuple[int, str]:
    """How many cards a text names, and which."""
    found = _SEVERAL.fullmatch(text.strip())
    return (int(found["count"]), found["name"]) if found else (1, text.strip())


def _is_size(text: str) -> bool:
    try:
        parse_size(text)
    except BadInput:
        return False
    return True


def of_size(total: int) -> Profile:
    """The default card with another memory: what an expert would call a card of that size."""
    return replace(PROFILES[DEFAULT], total=total)
