"""What a run on the simulated card presumes where a real one would decide, so that it has an answer; and says so.

Each is the same in every run, and takes the way on which the program may come to need the most memory; but for the one
that names what a card may need besides.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_memleak.upstream.imports import AfterImport
from pytest_memleak.upstream.patches import Patch

# Their jobs are independent of what the thread that hands them out does next, so that it may wait for each.
_LOADERS = frozenset({"transformers.core_model_loading"})
_THREADS = (
    "a load by several threads ran as far ahead as their pool lets it, the most memory that it can need: on a card "
    "that is a race"
)
_OUTLIERS = (
    "inputs of 8-bit layers were taken to have no outliers, numbers over the layer's threshold: on a card each column "
    "that has one is multiplied in 16 bits, and takes memory for that"
)
_ENDINGS = "generated tokens, which nobody knows, were taken not to end their sequences: on a card one may end earlier"


class Presumptions:
    """While entered, they are made; what they were made for is noted."""

    def __init__(self) -> None:
        self._made: list[str] = []
        """In words, each once."""
        self._without_outliers = False
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Presumptions:
        with contextlib.ExitStack() as undo:
            undo.enter_context(Patch(ThreadPoolExecutor, "submit", self._ahead))
            undo.enter_context(AfterImport({"transformers.generation.stopping_criteria": self._of_generation}))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def reset(self) -> None:
        self._made.clear()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Until the end nothing was presumed yet; then it is as before."""
        before, self._made = self._made, []
        try:
            yield
        finally:
            self._made = before

    def remarks(self) -> tuple[str, ...]:
        """What a reader of the numbers has to know."""
        return tuple(self._made)

    @contextlib.contextmanager
    def without_outliers(self) -> Iterator[None]:
        """Until the end 8-bit layers find none. For predictions alone: it is no upper bound, and a test whose program
        goes by such values is inconclusive."""
        before, self._without_outliers = self._without_outliers, True
        try:
            yield
        finally:
            self._without_outliers = before

    def of_outliers(self) -> AbstractContextManager[object]:
        """Around bitsandbytes' rounding to 8 bits, which looks for large numbers: new models have none, trained ones
        have some in few columns."""
        if not self._without_outliers:
            return contextlib.nullcontext()
        return _NoneFound(lambda: self._presume(_OUTLIERS))

    def _presume(self, words: str) -> None:
        if words not in self._made:
            self._made.append(words)

    def _ahead(self, found: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
        """A loader that hands its tensors to a pool of threads races with them. No time passes on the simulated card:
        the workers are as far ahead as their pool lets them."""

        def submit(pool: ThreadPoolExecutor, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future = found(pool, job, *args, **kwargs)
            # Whose function this is called by, and not whose job it is: a loader's functions may be used elsewhere.
            if sys._getframe(1).f_globals.get("__name__") in _LOADERS:
                self._presume(_THREADS)
                wait([future])
            return future

        return submit

    def _of_generation(self, module: ModuleType) -> list[Patch]:
        return [Patch(module.EosTokenCriteria, "__call__", self._goes_on, parameters=("input_ids",))]

    def _goes_on(self, found: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Text that is generated ends with a token, and which that is nobody knows: it becomes as long as it may."""

        def __call__(criteria: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            ended = found(criteria, input_ids, *args, **kwargs)  # with what it takes of memory
            if not _knows(ended):
                self._presume(_ENDINGS)
                ended.zero_()
            return ended

        return __call__


class _NoneFound(TorchFunctionMode):
    """While entered, whether any number of a whole tensor is true is no where nobody knows."""

    def __init__(self, presume: Callable[[], None]) -> None:
        super().__init__()
        self._presume = presume

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        found = function(*arguments, **(named or {}))
        if function is torch.Tensor.any and len(arguments) == 1 and not named and not _knows(found):
            self._presume()
            found.zero_()
        return found


def _knows(tensor: torch.Tensor) -> bool:
    return bool(torch.ops.memleak_card.knows(tensor))
