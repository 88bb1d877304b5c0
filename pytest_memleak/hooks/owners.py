"""Who holds what leaked: finds the tensors that the test made and left, and asks the ledger for their owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_memleak.checks.leak import Owners
from pytest_memleak.events import garbage
from pytest_memleak.meters.gauge import Reading

if TYPE_CHECKING:
    from pytest_memleak.hooks.running import RunningTest


def owners_of(test: RunningTest) -> Owners:
    def owners(reading: Reading, grown: int) -> tuple[str, ...]:
        from pytest_memleak.ledger.owners import explain

        kind = reading.device.partition(":")[0]
        found = [
            thing
            for thing in garbage.newcomers()
            # `type`, not isinstance: a hostile __class__ property must not run inside a census
            if issubclass(type(thing), torch.Tensor) and str(thing.device).partition(":")[0] == kind  # type: ignore[attr-defined]
        ]
        # Frozen objects are invisible to the search for referrers.
        garbage.thaw()
        try:
            return explain(found, grown, roots=test.roots(), ignore=(found,))
        finally:
            found.clear()

    return owners
