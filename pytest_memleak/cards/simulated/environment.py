"""Environment variables by which torch changes what a card's libraries take, or who hands out its memory."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from pytest_memleak.errors import BadInput

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
LIGHT_WORKSPACE = "CUBLASLT_WORKSPACE_SIZE"
UNCACHED = "PYTORCH_NO_CUDA_MEMORY_CACHING"
_KIB = 1024
_LIGHT_DEFAULT = "1024"
_BUFFERS = re.compile(r":([0-9]+):([0-9]+)")


def workspace(environment: Mapping[str, str], default: int) -> int:
    """What torch gives cuBLAS for each thread's products: buffers of so many KiB, and how many of each."""
    text = environment.get(WORKSPACE)
    if text is None:
        return default
    buffers = _BUFFERS.findall(text)
    if not buffers:
        warnings.warn(
            f"Could not parse {WORKSPACE}, using default workspace size of {default} bytes.", UserWarning, stacklevel=2
        )
        return default
    return sum(int(size) * _KIB * int(count) for size, count in buffers)


def check(environment: Mapping[str, str]) -> None:
    """Nothing is set that a simulated card cannot follow."""
    if UNCACHED in environment:
        raise BadInput(f"{UNCACHED} is set, which switches off the allocator that counts: unset it")
    if environment.get(LIGHT_WORKSPACE, _LIGHT_DEFAULT).strip() != _LIGHT_DEFAULT:
        raise BadInput(
            f"{LIGHT_WORKSPACE}={environment[LIGHT_WORKSPACE]}: a simulated card has {_LIGHT_DEFAULT}, torch's "
            "default, and no other: unset it"
        )
