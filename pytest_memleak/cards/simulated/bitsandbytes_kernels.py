"""bitsandbytes' own kernels for cards, with a native library behind them that does nothing.

They are Python code: it takes memory from torch, chooses by the card's properties, and at the end calls CUDA code by
address. All but that last step is the same here, temporaries included. A copy of their module is run for it, because
bitsandbytes imports its own only where a card was there in time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from pytest_memleak.cards.simulated import torch_inside
from pytest_memleak.cards.simulated.presumptions import Presumptions
from pytest_memleak.errors import Unavailable
from pytest_memleak.upstream.patches import Patch

NAMESPACE = "bitsandbytes"
_MODULE = "bitsandbytes.backends.cuda.ops"
# Beyond, nothing is computed; as in native/values.h.
_MOST_VALUES = 1 << 18

Kernel = Callable[..., Any]


class BitsandbytesKernels:
    """The kernels for one set of cards: what they choose by, they ask for once."""

    def __init__(self, presumptions: Presumptions) -> None:
        self._presumptions = presumptions
        self._kernels: dict[str, Kernel] = {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> BitsandbytesKernels:
        with contextlib.ExitStack() as undo:
            undo.enter_context(Patch(torch.library, "register_kernel", self._in_place_of_theirs))
            if NAMESPACE in sys.modules:
                self._register(undo)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _in_place_of_theirs(self, found: Callable[..., Any]) -> Callable[..., Any]:
        """bitsandbytes is being imported while the card is there: its own kernels would call CUDA code."""
        registered = False

        def register_kernel(op: Any, device_types: Any = None, func: Any = None, /, **kwargs: Any) -> Any:
            nonlocal registered
            if not str(op).startswith(f"{NAMESPACE}::") or device_types != "cuda":
                return found(op, device_types, func, **kwargs)
            if not registered:
                registered = True
                self._register(self._undo)
            return (lambda function: function) if func is None else None

        return register_kernel

    def _register(self, undo: contextlib.ExitStack) -> None:
        if not self._kernels:
            self._kernels = _with_silent_library()
        kernels = {name.partition("::")[2]: self._with_values(name, kernel) for name, kernel in self._kernels.items()}
        undo.enter_context(torch_inside.kernels_for_cuda(NAMESPACE, kernels))

    def _with_values(self, name: str, kernel: Kernel) -> Kernel:
        """What is small and known is computed as well, by the kernel that bitsandbytes has for the CPU."""
        operator, _, overload = name.partition("::")[2].partition(".")
        operation = getattr(getattr(torch.ops.bitsandbytes, operator), overload or "default")
        is_written = torch_inside.writes_to(operation)

        def run(*given: Any) -> Any:
            copies = _copies(given)
            with self._presumptions.of_outliers():
                results = kernel(*given)
            written = [value for value, writes in zip(given, is_written, strict=False) if writes]
            for tensor in _tensors(written):
                torch.ops.memleak_card.forget(tensor)
            try:
                computed = None if copies is None else operation(*copies)
            except RuntimeError:
                return results  # there is none for the CPU, or not its library: the values stay unknown
            if copies is not None:
                written_copies = [value for value, writes in zip(copies, is_written, strict=False) if writes]
                to = [*_tensors(written), *_tensors(results)]
                for tensor, value in zip(to, [*_tensors(written_copies), *_tensors(computed)], strict=True):
                    tensor.copy_(value.reshape(tensor.shape))  # for the CPU one kernel leaves a dimension more
            return results

        return run


def _copies(given: tuple[Any, ...]) -> list[Any] | None:
    """The same on the CPU; None if not all values are known, or if there are too many."""
    tensors = list(_tensors(given))
    few = sum(tensor.numel() for tensor in tensors) <= _MOST_VALUES
    if not few or not all(map(torch.ops.memleak_card.knows, tensors)):
        return None
    return [value.cpu() if isinstance(value, torch.Tensor) else value for value in given]


def _with_silent_library() -> dict[str, Kernel]:
    """The functions that their module registers for cards, by operation."""
    bitsandbytes: Any = sys.modules[NAMESPACE]
    path = Path(bitsandbytes.__file__).parent.joinpath(*_MODULE.split(".")[1:]).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not path.exists():
        raise Unavailable(
            f"bitsandbytes {bitsandbytes.__version__} has its kernels for cards elsewhere than in {_MODULE}: install "
            "one of 0.46 to 0.50, which have them there"
        )
    found: dict[str, Kernel] = {}

    def register_kernel(name: str, device: str) -> Callable[[Kernel], Kernel]:
        def register(kernel: Kernel) -> Kernel:
            found[name] = kernel
            return kernel

        return register

    module: Any = importlib.util.module_from_spec(spec)
    with (
        Patch(bitsandbytes.cextension, "lib", lambda theirs: _SilentLibrary()),
        Patch(bitsandbytes._ops, "register_kernel", lambda theirs: register_kernel),
    ):
        spec.loader.exec_module(module)
    module.CUBLAS_Context = _NoContext
    return found


class _SilentLibrary:
    """Takes every call for done."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        def done(*arguments: Any) -> int:
            return 0

        return done


class _NoContext:
    """cuBLAS' handle for a device, which only the native library reads."""

    @classmethod
    def get_instance(cls) -> _NoContext:
        return cls()

    def get_context(self, device: torch.device) -> None:
        return None


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
