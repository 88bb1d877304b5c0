"""Which GPUs there are for the ranks of a test. Which of them are free, and whose, the room of the workers knows."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pytest_memleak.workers import driver
from pytest_memleak.workers.visible import VARIABLE, Visible
from pytest_memleak.workers.visible import callers as seen


def here(callers: Sequence[str] | None = None) -> tuple[Visible, ...]:
    """The GPUs that this run may use. No context is made on any.

    `callers`: as they were named before this process, a worker of pytest-xdist, was given one of them.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        return ()
    if (there := driver.find()) is not None:
        return seen(there.devices(), callers)
    text = os.environ.get(VARIABLE, "") if callers is None else ",".join(callers)
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(Visible(name, None) for name in (names[:count] or map(str, range(count))))
