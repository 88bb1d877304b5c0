"""Patches of modules that may not be imported yet."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

from pytest_memleak.upstream.patches import Patch

PatchesOf = Callable[[ModuleType], Iterable[Patch]]


class AfterImport(MetaPathFinder):
    """While entered, each of these modules has its patches: at once where it is there, else when it is imported."""

    def __init__(self, patches: Mapping[str, PatchesOf]) -> None:
        self._patches = patches
        self._undo = contextlib.ExitStack()

    def __str__(self) -> str:
        return ", ".join(self._patches)

    def __enter__(self) -> AfterImport:
        with contextlib.ExitStack() as undo:
            self._undo = undo
            for name in self._patches:
                if (module := sys.modules.get(name)) is not None:
                    self._patch(module)
            sys.meta_path.insert(0, self)
            undo.callback(sys.meta_path.remove, self)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self._patches:
            return None
        if self not in sys.meta_path:
            return None  # it has ended in another thread meanwhile
        # Those that come after it: what came before asks this one, and would be asked by it without end.
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            self._follow(spec.name, spec.loader)
        return spec

    def _follow(self, name: str, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            # One loader may have several modules, and this one may have been looked for long before it is run.
            if module.__name__ == name and self in sys.meta_path:
                self._patch(module)

        loader.exec_module = exec_module

    def _patch(self, module: ModuleType) -> None:
        for patch in self._patches[module.__name__](module):
            self._undo.enter_context(patch)
