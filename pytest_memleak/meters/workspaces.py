"""What the matrix libraries keep on a card from their first product on: it is the process's, not a test's.

It is given back before a test is measured, so that no number depends on the tests before. But a test that reads the
allocator's counters would find, in the difference of two readings, a workspace that without the plugin had been there
all along. So what was given back is made again when the test asks, and at its end for whoever comes next. Not if a
library asks, as transformers does when it loads a model: the peak of a load would depend on what ran before it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

import pytest_memleak
from pytest_memleak.plan import Cap
from pytest_memleak.room import of_cuda
from pytest_memleak.upstream.patches import Patch

_ASKING = (
    "_cuda_memoryStats",
    "_cuda_resetPeakMemoryStats",
    "_accelerator_getDeviceStats",
    "_accelerator_resetPeakStats",
)
"""How a program learns what is allocated, or begins to look at it."""
_OF_TORCH, _OWN = (f"{os.path.dirname(str(module.__file__))}{os.sep}" for module in (torch, pytest_memleak))
_MULTIPLIED = 4096
"""What is multiplied is less: it is there for a moment on top of what is made."""
_DEPTH = 3
"""Frames of the test itself, or of helpers that it calls. A load of transformers asks from farther down."""


class Workspaces:
    """`folder`: where the test is. `kept_away`: whether they are not to be made for it, whatever it asks."""

    def __init__(self, folder: Path, cap: Cap | None, kept_away: Callable[[], bool]) -> None:
        self.made: dict[str, int] = {}
        """By device, what was made again while the test ran."""
        self._folder = f"{folder}{os.sep}"
        self._cap = cap
        self._kept_away = kept_away
        self._owed: dict[int, int] = {}
        """Bytes of each card that were given back and not made again."""
        self.making = False
        self.asleep = False
        """Who asks is no test."""
        self._too_late = False
        """It asked while they were kept away: from then on they would come within a difference."""
        self._listening: contextlib.ExitStack | None = None
        self._thread = threading.get_ident()

    def release(self) -> None:
        if torch.cuda.is_initialized():
            self._give_back()
            # Once: whoever else replaces these functions meanwhile puts back what was there before.
            if self._owed and self._listening is None:
                self._listening = self._listen()

    def restore(self) -> None:
        if self._listening is not None:
            self._listening.close()
        if self._owed and torch.cuda.is_initialized():
            with contextlib.suppress(Exception):  # as below
                self._give_back()  # the test's own: there will not be more than there was
            self._make_again(None)
        self._owed.clear()

    def _listen(self) -> contextlib.ExitStack:
        undo = contextlib.ExitStack()
        for name in _ASKING:
            if hasattr(torch._C, name):
                # What a program puts there meanwhile stays: nothing is owed once this is over.
                undo.enter_context(Patch(torch._C, name, self._answering, yields=True))
        return undo

    def _answering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any) -> Any:
            idle = self.making or self.asleep or self._too_late
            if self._owed and not idle and self._asked_by_the_test():
                self._too_late = self._kept_away()
                if not self._too_late:
                    self.made |= self._make_again(self._cap)
            return original(*args)

        answer.__wrapped__ = original  # type: ignore[attr-defined]  # for `inspect.unwrap`
        return answer

    def _asked_by_the_test(self) -> bool:
        for name in _names(sys._getframe(2)):
            if os.path.basename(name) == "conftest.py":
                return True
            # An environment may be within the folder.
            if name.startswith(self._folder) and "site-packages" not in name[len(self._folder) :]:
                return True
        return False

    def _give_back(self) -> None:
        before = _allocated()
        torch._C._cuda_clearCublasWorkspaces()
        for index, (held, left) in enumerate(zip(before, _allocated(), strict=True)):
            if held > left:
                self._owed[index] = max(self._owed.get(index, 0), held - left)

    def _make_again(self, cap: Cap | None) -> dict[str, int]:
        made: dict[str, int] = {}
        # Other threads have workspaces of their own.
        if not self._owed or threading.get_ident() != self._thread or not torch.cuda.is_initialized():
            return made
        self.making = True
        try:
            # Whatever state the test has brought its card or torch into: it goes on as if it had not asked.
            with contextlib.suppress(Exception):
                if torch.cuda.is_current_stream_capturing():  # what is recorded must not change
                    return made
                for index, held in list(self._owed.items()):
                    # A refusal would count as the test's.
                    if held <= of_cuda(index, cap).bytes:
                        del self._owed[index]
                        with _disable_current_modes():  # which may count what is done, or do nothing
                            made[f"cuda:{index}"] = _make(index, held)
        finally:
            self.making = False
        return made


def _names(frame: FrameType | None) -> Iterator[str]:
    """Of the files that ask, the nearest first."""
    depth = 0
    while frame is not None and depth < _DEPTH:
        name = frame.f_code.co_filename
        if name.startswith(_OWN) and os.path.basename(name) != "accelerator.py":
            return  # which asks for reasons of its own
        if not name.startswith((_OF_TORCH, _OWN)):
            depth += 1
            yield name
        frame = frame.f_back


def _make(index: int, held: int) -> int:
    """With the fewest products that make as much as was there."""
    before = _allocated()[index]
    # Each thread has workspaces of its own, and ways back have a thread; products with a bias have another library.
    # What the test has made itself is not given back for an exact count: a graph that it recorded may go on using it.
    for backward in (False, True):
        for biased in (False, True):
            if _allocated()[index] - before < held:
                _multiply(index, biased=biased, backward=backward)
    return _allocated()[index] - before + _MULTIPLIED


def _multiply(index: int, *, biased: bool, backward: bool) -> None:
    def product(*ignored: Any) -> None:
        with torch.no_grad(), torch.autocast("cuda", enabled=False):
            small = torch.zeros(16, 16, device=f"cuda:{index}", dtype=torch.float32)
            if biased:
                torch.addmm(small[0], small, small)
            else:
                torch.mm(small, small)

    if not backward:
        product()
        return
    with torch.inference_mode(False), torch.enable_grad():
        passed = torch.zeros(1, device=f"cuda:{index}", requires_grad=True) + 0
        passed.register_hook(product)
        passed.backward()


def _allocated() -> list[int]:
    stats = inspect.unwrap(torch._C._cuda_memoryStats)
    cards = torch._C._cuda_getDeviceCount()  # what torch.cuda says of them a test may have replaced
    return [int(stats(index)["allocated_bytes"]["all"]["current"]) for index in range(cards)]
