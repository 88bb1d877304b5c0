"""What the matrix libraries keep on a card from their first product on: it is the process's, not a test's.

It is given back before a test is measured, so that no number depends on the tests before. But a test that reads the
allocator's counters would find, in the difference of two readings, a workspace that without the plugin had been there
all along. So what was given back is made again as soon as the test asks, and at its end for whoever comes next. Not if
a library asks, as transformers does when it loads a model: the peak of a load would depend on what ran before it.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_ASKED = ("_cuda_memoryStats", "_accelerator_getDeviceStats")
"""How a program learns what is allocated."""
_OF_TORCH = os.path.dirname(torch.__file__) + os.sep
_DEPTH = 2
"""Frames outside of torch: the test's own, or that of a helper which it calls."""


class Workspaces:
    """`folder`: where the test is, with what belongs to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = f"{folder}{os.sep}"
        self._owed: dict[int, int] = {}
        """Bytes of each card that were given back and not made again."""
        self._standing_in: dict[str, Callable[..., Any]] = {}
        self._thread = threading.get_ident()

    def release(self) -> None:
        if not torch.cuda.is_initialized():
            return
        before = _allocated()
        torch._C._cuda_clearCublasWorkspaces()
        for index, held in enumerate(_allocated()):
            if before[index] > held:
                self._owed[index] = max(self._owed.get(index, 0), before[index] - held)
        if self._owed and not self._standing_in:
            self._listen()

    def restore(self) -> None:
        for name, mine in self._standing_in.items():
            # A simulated card that is gone has taken its functions with it.
            if getattr(torch._C, name, None) is mine:
                setattr(torch._C, name, inspect.unwrap(mine))
        self._standing_in.clear()
        self._make_again()

    def _listen(self) -> None:
        for name in _ASKED:
            if original := getattr(torch._C, name, None):
                self._standing_in[name] = self._answering(original)
                setattr(torch._C, name, self._standing_in[name])

    def _answering(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any) -> Any:
            if self._owed and self._asked_by_the_test():
                self._make_again()
            return original(*args)

        answer.__wrapped__ = original  # type: ignore[attr-defined]  # for `inspect.unwrap`
        return answer

    def _asked_by_the_test(self) -> bool:
        frame, depth = sys._getframe(2), 0
        while frame is not None and depth < _DEPTH:
            name = frame.f_code.co_filename
            if name.startswith(self._folder) or os.path.basename(name) == "conftest.py":
                return True
            depth += not name.startswith(_OF_TORCH)
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def _make_again(self) -> None:
        # Other threads have workspaces of their own, and what a stream is recorded for must not change.
        if threading.get_ident() != self._thread or not torch.cuda.is_initialized():
            return
        with contextlib.suppress(RuntimeError):  # a test may have left a card that answers with errors alone
            if torch.cuda.is_current_stream_capturing():
                return
            for index, held in list(self._owed.items()):
                # Where there is no room the test can make no product either, and a refusal would count as its own.
                if held <= torch.cuda.mem_get_info(index)[0]:
                    del self._owed[index]
                    _make(index, held)


def _make(index: int, held: int) -> None:
    """With the fewest products that make as much as was there."""
    before = _allocated()[index]
    # Each thread has workspaces of its own, and ways back have a thread; products with a bias have another library.
    for backward in (False, True):
        for biased in (False, True):
            if _allocated()[index] - before < held:
                _multiply(index, biased=biased, backward=backward)


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
    return [int(stats(index)["allocated_bytes"]["all"]["current"]) for index in range(torch.cuda.device_count())]
