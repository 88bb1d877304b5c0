"""One line of what ``memleak doctor`` found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mark = Literal["yes", "partly", "no", "-"]
"""``-`` marks plain facts that are neither good nor bad."""


@dataclass(frozen=True)
class Finding:
    group: str
    mark: Mark
    what: str
    detail: str
    caps: bool = False
    """Whether this finding is a cap that holds on this machine."""


def first_line(error: Exception) -> str:
    """What an error says, as far as it fits on a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
