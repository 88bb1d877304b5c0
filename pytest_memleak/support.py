"""The oldest releases this package was checked on, in one place, and how a release is held against them."""

from __future__ import annotations

import functools
import importlib.util
import re
from importlib import metadata

from pytest_memleak.errors import Unavailable

PYTHON_FLOOR = "3.10"
PYTEST_FLOOR = "8.3"
TORCH_FLOOR = "2.6"


def at_least(version: str, floor: str) -> bool:
    """Whether a release is not older than the floor. A build of the floor before its release (2.6.0a0) counts as it."""
    return _release(version) >= _release(floor)


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


@functools.cache
def require_torch() -> None:
    """Raises, with what to do, unless a torch is installed that this package can measure. Does not import it."""
    if not has_torch():
        raise Unavailable(
            "this test asks about memory, and torch is not installed: install the one your project uses, or "
            "pip install 'pytest-memleak[torch]'"
        )
    version = metadata.version("torch")
    if not at_least(version, TORCH_FLOOR):
        raise Unavailable(f"torch {version} is too old to be measured: install torch {TORCH_FLOOR} or later")


def has_torch() -> bool:
    try:
        return importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):  # hidden on purpose, by a finder that refuses it or an empty entry in sys.modules
        return False
