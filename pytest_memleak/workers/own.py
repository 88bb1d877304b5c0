"""What this process itself holds of the cards it sees, and letting go of what it does not need. Imports no torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence

from pytest_memleak.workers.fitting import CONTEXT


def let_go() -> None:
    """What torch's allocator keeps for later is nobody's, once no test of this process runs."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        # After an assertion on the device all calls fail; what is reserved has to be given back all the same.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def held(keys: Sequence[str]) -> Mapping[str, int]:
    """Bytes of each card, in the order in which this process sees them: context and reserved memory."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    found: dict[str, int] = {}
    for index, key in enumerate(keys[: torch.cuda.device_count()]):
        if (reserved := torch.cuda.memory_reserved(index)) or not index:
            found[key] = CONTEXT + reserved
    return found
