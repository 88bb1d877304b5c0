"""A name in a limit, and what it came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """What a name in a limit meant: ``fp16_size``, 2,200,100,864 B, "1,100,050,432 parameters × 2 B of Llama…"."""

    name: str
    bytes: int
    meaning: str
