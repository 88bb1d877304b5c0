"""Uninitialized memory that torch hands out is filled with NaN, so that what is never written shows every time.

Fresh pages are zeros by chance, and old ones hold what was there before. torch fills what it allocates where it is to
be deterministic; then operations without such an implementation warn, which is nobody's business here.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import torch

# Of an operation that has no deterministic implementation, and of cuBLAS without a setting that nobody asked for.
_WARNINGS = (
    r".* does not have a deterministic implementation, but you set",
    r".*Deterministic behavior was enabled with either `torch.use_deterministic_algorithms",
    r".*Attempting to run cuBLAS, but there was no current CUDA context",
)


class Poison:
    """On and off, any number of times. What the program sets meanwhile for itself counts until it is switched off."""

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._on = False

    def on(self) -> None:
        if self._on:
            return
        self._on = True
        filling: Any = torch.utils.deterministic
        self._undo.callback(setattr, filling, "fill_uninitialized_memory", filling.fill_uninitialized_memory)
        self._undo.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        if not torch.are_deterministic_algorithms_enabled():  # else it is what the program wants of it
            for message in _WARNINGS:
                self._undo.callback(_take_out, _put_in(message))
            torch.use_deterministic_algorithms(True, warn_only=True)
        filling.fill_uninitialized_memory = True

    @property
    def is_lifted(self) -> bool:
        """The program has switched it off for itself, and not on again."""
        filling: Any = torch.utils.deterministic
        fills = torch.are_deterministic_algorithms_enabled() and filling.fill_uninitialized_memory
        return self._on and not fills

    def off(self) -> None:
        self._on = False
        self._undo.close()


def _put_in(message: str) -> Any:
    warnings.filterwarnings("ignore", message=message, category=UserWarning)
    return warnings.filters[0]


def _take_out(entry: Any) -> None:
    # pytest and the program enter and leave lists of their own: it may be gone with one of them.
    filters: Any = warnings.filters
    if entry in filters:
        filters.remove(entry)
