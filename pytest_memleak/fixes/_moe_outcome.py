"""What was done about a model's experts, in words and bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch

from pytest_memleak.budget.sizes import format_size
from pytest_memleak.fixes._moe_packing import Packed
from pytest_memleak.fixes._moe_settings import Settings
from pytest_memleak.upstream.experts import ExpertParameter

_log = logging.getLogger("pytest_memleak.fixes.moe_experts")


class Outcome:
    """Of one load, or of one call of `quantize_experts`."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.settings: Settings | None = None
        self.names: list[str] = []
        """Of the tensors that are in 4 bits now."""
        self.whole: list[str] = []
        """Those of them that were put together at full precision first: nobody knew how to do it by expert."""
        self.left: dict[str, tuple[str, ...]] = {}
        """Those that stay as they are, by the reason."""
        self.without_config = False
        """Whether the model's own config says nothing of 4 bits, so that no load can know of them."""
        self.before = 0
        """Bytes of what was quantized, at the precision that it came in, and `after` it."""
        self.after = 0
        self._dtype: torch.dtype | None = None

    @property
    def saved(self) -> int:
        return self.before - self.after

    def leave(self, experts: Iterable[ExpertParameter], why: str) -> None:
        if names := tuple(one.name for one in experts):
            self.left[why] = names

    def add(self, name: str, shape: torch.Size, done: Packed) -> None:
        self.names.append(name)
        self._dtype = done.state.dtype
        self.before += shape.numel() * done.state.dtype.itemsize
        self.after += done.nbytes

    def __str__(self) -> str:
        return f"moe_experts: {self.model}: {'; '.join(self._parts())}"

    def tell(self) -> None:
        """A program whose libraries are patched should say so without being asked; that nothing was done is no news."""
        _log.log(logging.WARNING if self.names or self.left else logging.INFO, "%s", self)

    def _parts(self) -> Iterable[str]:
        if not self.names and not self.left:
            yield "it has no experts, and nothing was done"
        if self.names:
            how = f" ({self.settings})" if self.settings is not None else ", as they were stored"
            yield (
                f"{len(self.names)} expert tensors in 4 bits{how}, {format_size(self.before)} → "
                f"{format_size(self.after)}, {format_size(self.saved)} less"
            )
        if self.whole:
            yield (
                f"{len(self.whole)} of them a whole tensor at a time, since how the checkpoint has them is not known: "
                f"{self.whole[0]}"
            )
        if self.settings is not None and self._dtype is not None and self.settings.compute_dtype != self._dtype:
            # Their code multiplies by the hidden state as it comes. Another type would be an error there.
            yield f"they compute in {_named(self._dtype)} and not in {_named(self.settings.compute_dtype)}"
        if self.without_config and self.names:
            yield "the model was not loaded in 4 bits: what is saved of it now cannot be loaded again"
        for why, names in self.left.items():
            yield f"{len(names)} stay as they are, because {why}: {names[0]}{', …' if len(names) > 1 else ''}"


def _named(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
